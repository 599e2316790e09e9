"""Data: from videos and what was said over them to chunks that a model can be trained on.

Transcripts of many formats (`formats`, `conversations`) become one `Transcript`. `prepare` cuts recordings into chunks
and writes them as parquet, with a manifest of all that was dropped or mended; `PreparedData` reads them back.
"""

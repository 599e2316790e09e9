"""Data preparation: turn videos and transcripts into training chunks.

The readers (`transcript_files`, `conversations`) turn every format into one `Transcript`. `prepare` cuts recordings
into chunks and writes them as parquet, with a manifest of everything that was dropped or repaired. `PreparedData`
reads the result.
"""

"""A copy of a video file with captions, made turn by turn while the file is streamed.

Each turn is a fragment of an mp4 (ISO 14496-12: moof and mdat), made by a muxer of its own and appended to the file. So
the file can be played whenever its writer dies, a stopped copy is continued by appending, and a fragment depends on its
turn alone.
"""

import io
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

import av

from streamingvlm.video.mp4 import outer_boxes, text_fragment
from streamingvlm.video.pyav import open_pyav
from streamingvlm.video.tracks import CopiedTrack, EncodedPicture, decode_lead_s, open_sound

Captions = Literal["burned", "track"]
CAPTIONS = get_args(Captions)

_MUXER = {
    "movflags": "empty_moov+default_base_moof+frag_discont+skip_trailer",
    "use_editlist": "0",
    "avoid_negative_ts": "disabled",  # each fragment keeps its time
}
_TEXT_CLOCK = 1000  # ticks per second of a text track
_ASS_HEADER = (  # which FFmpeg asks for before it declares a text track
    b"[V4+ Styles]\nFormat: Name, Fontname, Fontsize, PrimaryColour\nStyle: Default,Arial,16,&Hffffff\n\n"
    b"[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
)


class CaptionedVideo:
    """Reads a file once, from front to back, and returns its turns as fragments of an mp4 with captions.

    captions: ``burned`` into the picture, which is encoded again as displayed, or a ``track`` of text; then a picture
        that mp4 can hold is copied. Sound is copied or, if mp4 cannot hold it, encoded as AAC.
    start_s: stream time at which the mp4 begins.

    Raises VideoError if the file cannot be read.
    """

    def __init__(self, path: str | Path, *, captions: Captions, start_s: float = 0.0):
        path = Path(path)
        first = open_pyav(path)
        zero_s, orientation = first.to_file_time(0.0), first.orientation
        first.close()
        self._burns, self._start_s = captions == "burned", start_s
        # A copied picture can only begin at a keyframe; its first packet is decoded some time before it is shown.
        lead_s = decode_lead_s(path, zero_s)
        copies = not (self._burns or start_s or lead_s is None)
        self._shift_s = lead_s if copies else 0.0
        file_start_s = zero_s + start_s - self._shift_s
        picture = (
            CopiedTrack(path, "video", file_start_s) if copies else EncodedPicture(path, start_s, zero_s, orientation)
        )
        sound = open_sound(path, file_start_s)
        self._tracks = [picture, sound] if sound else [picture]
        self._is_positioned = False

    def head(self) -> bytes:
        """Return the head of the mp4, which stands before the first fragment."""
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4", options=_MUXER) as output:
            for track in self._tracks:
                track.declare(output)
            if not self._burns:
                text = output.add_stream("mov_text", options={"time_base": f"1/{_TEXT_CLOCK}"})
                text.time_base = Fraction(1, _TEXT_CLOCK)
                text.codec_context.subtitle_header = _ASS_HEADER
            output.start_encoding()
        return b"".join(box for name, box in outer_boxes(buffer.getvalue()) if name in (b"ftyp", b"moov"))

    def fragment(self, start_s: float, end_s: float, caption: str) -> bytes:
        """Return the turn between two stream times, which goes on from the call before."""
        start_s, end_s = (time_s - self._start_s + self._shift_s for time_s in (start_s, end_s))
        if not self._is_positioned:
            self._is_positioned = True
            for track in self._tracks:
                track.seek(start_s if start_s > self._shift_s else 0.0)
        number = 2 * round(start_s * _TEXT_CLOCK) + 1
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4", options={**_MUXER, "fragment_index": str(number)}) as output:
            streams = [track.declare(output) for track in self._tracks]
            for track, stream in zip(self._tracks, streams, strict=True):
                track.mux(output, stream, end_s, caption if self._burns else "")
        fragment = b"".join(box for name, box in outer_boxes(buffer.getvalue()) if name in (b"moof", b"mdat"))
        if self._burns:
            return fragment
        span = (round(time_s * _TEXT_CLOCK) for time_s in (start_s, end_s))
        return fragment + text_fragment(caption, *span, track_id=len(self._tracks) + 1, number=number + 1)

    def close(self):
        """Close the file. Safe to call twice."""
        for track in self._tracks:
            track.close()

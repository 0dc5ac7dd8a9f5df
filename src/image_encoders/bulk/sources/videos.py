"""Videos: some of their frames, each with its time, as `video.mp4#t=83.2`.

    video.mp4 ─every so many seconds→ times ─decoded on demand→ frames
              └at scene cuts: decoded in order→ frames

The times of the first kind follow from the length that the file's header says, so known frames are not
decoded again. Scene cuts must be detected each time.
"""

from __future__ import annotations

import heapq
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from image_encoders.bulk.sources.contents import Content, taken
from image_encoders.bulk.sources.items import Entry, Problem, Ready, Uncountable, Walk
from image_encoders.bulk.sources.places import Place
from image_encoders.errors import InputError, MissingExtra, first_line
from image_encoders.inputs.image import ImageLimits
from image_encoders.records import Locator

if TYPE_CHECKING:
    from types import ModuleType

SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".3gp", ".ogv"),
    *(".flv", ".wmv"),
)
SCENES = "scenes"
CUT = 0.11  # of white: how far the colours of a small copy differ from the frame before; PySceneDetect has 27 / 255
SHORTEST_SCENE_S = 0.5
NEAR_S = 30.0  # ahead of the frame that was decoded last: that far it is quicker to go on than to seek
TOLERANCE_S = 1.0  # how far the last frame may lie before the end that the header says
SOUGHT_S = (0.0, 2.0, 10.0, 60.0, 1e5)  # before a time: in streams without an index one may come out behind it
OPEN = 4  # videos that are kept open
PASSED = 16  # frames of one that came by before they were asked for


def is_video_name(name: str) -> bool:
    """Whether a file's name ends as those of videos do."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def frame_times(wish: str) -> float | None:
    """The seconds from frame to frame that "10" or "scenes" asks for; None for scene cuts; InputError for others."""
    if wish == SCENES:
        return None
    try:
        seconds = float(wish)
        if 0 < seconds < float("inf"):
            return seconds
    except ValueError:
        pass
    raise InputError(f"frames is {wish!r}; accepted: a number of seconds above 0, or {SCENES!r}", code="frames")


def time_name(time_s: float) -> str:
    """A time as ids have it: 83.2, 7, 0.125."""
    return f"{time_s:.3f}".rstrip("0").rstrip(".")


@dataclass(eq=False)
class Frame(Ready):
    """A frame of a video.

    time_s: from its beginning
    every_s: from frame to frame; None: they are no such series
    """

    place: Place
    time_s: float
    every_s: float | None = None
    content: Content | None = None
    metadata: None = None
    error: None = None

    @cached_property
    def name(self) -> str:
        return f"{self.place.path}#t={time_name(self.time_s)}"

    @property
    def locator(self) -> Locator:
        return Locator(self.place.path, time_s=self.time_s)

    @property
    def state(self) -> str:
        return f"{self.place.state} {time_name(self.time_s)}"

    def read(self, limits: ImageLimits) -> bytes:
        """The frame as a BMP file, which loses nothing and costs little."""
        return taken(self.content, partial(read_frame, self.place, self.time_s, limits, self.every_s))


class Video:
    """The frames of a video."""

    def __init__(self, place: Place, walk: Walk):
        self.place, self.walk, self.every_s = place, walk, walk.settings.every_s

    @property
    def repeatable(self) -> bool:
        return self.place.near and self.every_s is not None

    def check(self) -> None:
        """Raise an error where it cannot be opened, or nothing is installed that could."""
        _av()
        self.place.open().close()

    def entries(self) -> Iterator[Entry]:
        """Its frames; what cannot be read of it comes out as entries of their own."""
        if self.walk.counting and not self.repeatable:
            raise Uncountable
        try:
            self.place.state  # noqa: B018  before anything of it is read
            with closing(_Decoder(self.place)) as video:
                if self.every_s is None:
                    yield from self._scenes(video)
                else:
                    for number in range(max(1, int(np.ceil(video.length_s / self.every_s)))):
                        yield Frame(self.place, round(number * self.every_s, 3), self.every_s)
        except (InputError, MissingExtra) as error:
            problem = error if isinstance(error, InputError) else InputError(str(error), code="unsupported")
            yield Problem(self.place.path, Locator(self.place.path), problem)
        else:
            self.walk.complete(self.place.id)

    def _scenes(self, video: _Decoder) -> Iterator[Entry]:
        """The first frame of each scene, and where it is damaged."""
        limits = ImageLimits.from_environment()
        before: np.ndarray | None = None
        last, damaged = -SHORTEST_SCENE_S, False
        for time_s, frame in video.frames():
            if frame is None:
                if not damaged:
                    name = f"{self.place.path}#t={time_name(time_s)}"
                    yield Problem(name, Locator(self.place.path, time_s=time_s), _damaged(time_s))
                before, damaged = None, True
                continue
            damaged = False
            small = frame.reformat(width=64, height=36, format="rgb24").to_ndarray().astype(np.int16)
            cut = before is None or np.abs(small - before).mean() / 255 > CUT
            before = small
            if cut and time_s - last >= SHORTEST_SCENE_S:
                last = time_s
                one = Frame(self.place, round(time_s, 3))
                if not self.walk.known(one.id, one.state):
                    one.content = Content(_bmp(frame, limits))
                yield one


def read_frame(place: Place, time_s: float, limits: ImageLimits, every_s: float | None = None) -> bytes:
    """The frame that is seen at a time, as a BMP file; InputError ("damaged") where it cannot be decoded.

    every_s: of a series of frames: frames passed on the way are kept for later requests
    """
    with _kept_open(place) as video:
        return _bmp(video.at(time_s, every_s), limits)


def _av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise MissingExtra("av", "video", "reading videos") from error
    return av


class _Decoder:
    """An open video."""

    def __init__(self, place: Place):
        self.lock = threading.Lock()
        self._av = _av()
        self._file = None if place.near else place.open()
        try:
            self._container = self._av.open(place.path if self._file is None else self._file)
        except (OSError, ValueError) as error:
            raise InputError(f"a video that cannot be opened: {_said(error)}", code="corrupt") from error
        if not self._container.streams.video:
            self._container.close()
            raise InputError("no video in the file", code="not-an-image")
        self._stream = stream = self._container.streams.video[0]
        stream.thread_type = "SLICE"  # threads for frames would report damage later than where it is
        stream.codec_context.options = {"err_detect": "explode"}  # what is damaged is an error, not a guess
        self._start = stream.start_time or 0
        length = stream.duration and stream.duration * stream.time_base
        self.length_s = float(length or (self._container.duration or 0) / self._av.time_base)
        self._frames = self.frames()
        self._shown: tuple[float, Any] | None = None  # the newest frame that is not after what was asked for
        self._next: tuple[float, Any] | None = None  # the one after it
        self._passed: OrderedDict[float, Any] = OrderedDict()

    def close(self) -> None:
        self._container.close()
        if self._file is not None:
            self._file.close()

    def frames(self) -> Iterator[tuple[float, Any]]:
        """(time [s], frame) in order from where it stands, and (time, None) for those that are damaged.

        From a packet that cannot be decoded to the next that depends on no others, all are: they were made from it.
        """
        lost: list[int] = []  # times of damaged packets, a heap: packets come in another order than frames
        tainted, sound_from = False, None
        for packet in self._packets():
            at = packet.dts if packet.pts is None else packet.pts
            try:
                frames, sound = packet.decode(), not packet.is_corrupt
            except (OSError, ValueError):  # av.FFmpegError is one of these, by its kind
                frames, sound = [], False
            if at is not None:
                if not sound:
                    tainted, sound_from = True, None
                elif tainted and packet.is_keyframe:
                    tainted, sound_from = False, at
                if tainted or (sound_from is not None and at < sound_from):
                    heapq.heappush(lost, at)
            for frame in frames:
                if frame.pts is None:
                    continue
                while lost and lost[0] < frame.pts:
                    yield self._time(heapq.heappop(lost)), None
                damaged = frame.is_corrupt
                while lost and lost[0] == frame.pts:
                    heapq.heappop(lost)
                    damaged = True
                yield self._time(frame.pts), None if damaged else frame
        yield from ((self._time(at), None) for at in sorted(lost))

    def _packets(self) -> Iterator[Any]:
        with suppress(OSError, ValueError):  # the end, as far as it can be read
            yield from self._container.demux(self._stream)

    def _time(self, pts: int) -> float:
        return float((pts - self._start) * self._stream.time_base)

    def at(self, time_s: float, every_s: float | None) -> Any:
        """The frame that is seen at a time."""
        if (passed := self._passed.pop(time_s, None)) is not None:
            return passed
        position = self._shown[0] if self._shown else None
        if position is None or not position <= time_s <= position + NEAR_S:
            self._seek(time_s)
        due = _multiples(every_s, self._shown[0] if self._shown else time_s, time_s)
        while True:
            if self._next is None:
                self._next = next(self._frames, None)
            while due and (self._next is None or self._next[0] > due[0] + 0.0005):
                self._pass(due.pop(0))
            if self._next is None or self._next[0] > time_s + 0.0005:
                break
            self._shown, self._next = self._next, None
        if self._shown is None or self._shown[1] is None:
            raise _damaged(self._shown[0] if self._shown else time_s)
        if self._ended(time_s):
            said = f", before the {self.length_s:.1f} s that its header says" if time_s < self.length_s else ""
            raise InputError(f"the video ends at {self._shown[0]:.1f} s{said}", code="truncated")
        return self._shown[1]

    def _ended(self, time_s: float) -> bool:
        """Whether a time lies behind the newest frame, which is the last one."""
        assert self._shown is not None
        return self._next is None and time_s > self._shown[0] + TOLERANCE_S + _duration(self._shown[1])

    def _pass(self, time_s: float) -> None:
        """Keep the frame that is seen at a time which somebody will soon ask for."""
        if self._shown is not None and self._shown[1] is not None and not self._ended(time_s):
            self._passed[time_s] = self._shown[1]
            if len(self._passed) > PASSED:
                self._passed.popitem(last=False)

    def _seek(self, time_s: float) -> None:
        for before_s in SOUGHT_S:
            target = self._start + int((time_s - before_s) / self._stream.time_base)
            try:
                self._container.seek(target, stream=self._stream)
            except OSError as error:
                raise InputError(f"seeking in the video failed: {_said(error)}", code="damaged") from error
            self._frames, self._shown = self.frames(), None
            self._next = next(self._frames, None)
            if before_s > time_s or (self._next is not None and self._next[0] <= time_s + 0.0005):
                return


def _multiples(every_s: float | None, after: float, before: float) -> list[float]:
    """The times of a series between two."""
    if every_s is None:
        return []
    first = int(np.floor(after / every_s + 1e-6)) + 1
    last = int(np.ceil(before / every_s - 1e-6))
    return [round(number * every_s, 3) for number in range(max(first, last - PASSED), last)]


def _duration(frame: Any) -> float:
    """How long a frame is seen [s]; 0 where it does not say."""
    return float((getattr(frame, "duration", 0) or 0) * (frame.time_base or 0))


_open: OrderedDict[tuple[str, str], _Decoder] = OrderedDict()
_opening = threading.Lock()


@contextmanager
def _kept_open(place: Place) -> Iterator[_Decoder]:
    """The open video of a place, for one thread at a time; few are open at once."""
    video = _locked(place)
    try:
        yield video
    finally:
        video.lock.release()


def _locked(place: Place) -> _Decoder:
    key = (place.path, place.state)
    while True:
        with _opening:
            video = _open.pop(key, None) or _Decoder(place)
            _open[key] = video
            while len(_open) > OPEN:
                _, oldest = _open.popitem(last=False)
                with oldest.lock:
                    oldest.close()
        video.lock.acquire()
        if _open.get(key) is video:
            return video
        video.lock.release()  # it was closed before its turn came


def _bmp(frame: Any, limits: ImageLimits) -> bytes:
    from PIL import Image

    limits.check_pixels(frame.width, frame.height)
    pixels = frame.to_ndarray(format="rgb24")
    turns = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels, turns))).save(file, "BMP")
    return file.getvalue()


def _damaged(time_s: float) -> InputError:
    return InputError(f"the video is damaged at {time_s:.2f} s, and cannot be decoded there", code="damaged")


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or first_line(error)

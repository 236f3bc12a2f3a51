"""Images that cannot be read: counted, listed, and an error beyond a share of the set."""

import pathlib
import threading
import warnings

from zoo.errors import ZooError

FILE = "unreadable.txt"  # in the run folder, a name a line


class Unreadable:
    """The examples of a set that cannot be read, by name, and why. More than `most` of `total` are a ZooError."""

    def __init__(self, most: float, total: int):
        self.most, self.total = most, total
        self.left_out: dict[str, str] = {}
        self.replaced: dict[str, str] = {}  # of a large set, found while it trains
        self._places: list[str] = []  # those of a large set, whose order depends on their number
        self.unlabelled = 0
        self._lock = threading.Lock()  # batches are read in threads
        self._file: pathlib.Path | None = None

    def leave_out(self, name: str, reason: str, keeps_place: bool = False) -> None:
        self.left_out[name] = reason
        if keeps_place:
            self._list([name])

    def replace(self, name: str, reason: str) -> None:
        """Counts an example whose place another one takes; ZooError where there are too many."""
        with self._lock:
            if name not in self.replaced:
                self.replaced[name] = reason
                self._list([name])
                if len(self.replaced) == 1:
                    warnings.warn(f"{reason}; the next image takes its place, and {FILE} lists it", stacklevel=2)
        self.check()

    def keep_in(self, folder: pathlib.Path) -> None:
        """From now on lists in the run folder what keeps a place in the order of the examples."""
        with self._lock:
            self._file, known, found = folder / FILE, listed(folder), self._places
            self._places = []
            self._list([name for name in found if name not in known])

    def _list(self, names: list[str]) -> None:
        self._places += names
        if self._file is not None and names:
            with self._file.open("a", encoding="utf-8", errors="surrogateescape") as file:
                file.writelines(f"{name}\n" for name in names)

    def check(self) -> None:
        """ZooError where there are too many."""
        reasons = [*self.left_out.values(), *self.replaced.values()]
        if len(reasons) > self.most * self.total:
            raise ZooError(
                f"{len(reasons)} of {self.total} images cannot be read; repair or remove them, or raise "
                f"data.most-unreadable, {self.most:g}: {'; '.join(reasons[:3])}{'; ...' if len(reasons) > 3 else ''}"
            )

    def notes(self) -> list[str]:
        notes = []
        if reasons := [*self.left_out.values()]:
            notes.append(f"images left out that cannot be read, {len(reasons)}: {'; '.join(reasons[:3])}")
        if self.unlabelled:
            notes.append(f"images left out that have no label: {self.unlabelled:,}")
        return notes


def listed(folder: pathlib.Path) -> tuple[str, ...]:
    """What a run could not read: it keeps its place in the order of the examples, also once it has been deleted."""
    file = folder / FILE
    if not file.is_file():
        return ()
    return tuple(dict.fromkeys(file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()))

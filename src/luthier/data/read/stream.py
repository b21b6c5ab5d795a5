"""The bytes of a file in pieces, unpacked where it is packed; a damaged or dangerous packing stops the reading with its place."""

import codecs
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from typing import IO, Any

from luthier.errors import DataError

PIECE_BYTES = 1 << 20
PACKED_PIECE_BYTES = 1 << 16
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
MOST_UNPACKED_RATIO = 200
# Below this a bomb is no danger, and a small file of equal rows is no bomb.
BOMB_FROM_BYTES = 1 << 20
RIGHT_ENCODING = "set data.encoding to the encoding that the file was saved in"


def pieces(file: IO[bytes], compression: str, name: str) -> Iterator[bytes]:
    """The unpacked content in pieces of about a megabyte. Raises DataError where the packed data are cut, damaged or a bomb."""
    match compression:
        case "gzip":
            return _gzip_pieces(file, name)
        case "zstd":
            return _zstd_pieces(file, name)
        case _:
            return iter(lambda: file.read(PIECE_BYTES), b"")


def _gzip_pieces(file: IO[bytes], name: str) -> Iterator[bytes]:
    """One or more gzip members, one after the other (RFC 1952); zeros may follow, as tape and disk tools leave them."""
    packed, unpacked_bytes = file.read(PACKED_PIECE_BYTES), 0
    while packed:
        unpacker = zlib.decompressobj(wbits=31)
        while not unpacker.eof:
            if not packed and not (packed := file.read(PACKED_PIECE_BYTES)):
                raise _damaged(name, "gzip", "ends too early: the file was cut", unpacked_bytes)
            try:
                piece = unpacker.decompress(packed, PIECE_BYTES)
            except zlib.error as error:
                raise _damaged(name, "gzip", f"is damaged ({_gzip_words(error)})", unpacked_bytes) from error
            packed = unpacker.unconsumed_tail
            unpacked_bytes += len(piece)
            _check_ratio(name, unpacked_bytes, file.tell())
            if piece:
                yield piece
        packed = _next_member(unpacker.unused_data, file)
        if packed and not packed.startswith(GZIP):
            raise _damaged(name, "gzip", "is followed by bytes that are not gzip", unpacked_bytes)


def _next_member(packed: bytes, file: IO[bytes]) -> bytes:
    """What follows a member, without padding."""
    while not (packed := packed.lstrip(b"\0")):
        if not (packed := file.read(PACKED_PIECE_BYTES)):
            return b""
    return packed + file.read(1) if len(packed) == 1 else packed


def _gzip_words(error: zlib.error) -> str:
    text = str(error)
    if "incorrect data check" in text or "incorrect length check" in text:
        return "its checksum is wrong"
    return text.partition(": ")[2] or text


def _zstd_pieces(file: IO[bytes], name: str) -> Iterator[bytes]:
    import pyarrow as pa

    unpacked_bytes = 0
    with pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd") as stream:
        while True:
            try:
                piece = stream.read(PIECE_BYTES)
            except (OSError, pa.ArrowException) as error:
                cut = "truncated" in str(error).lower()
                said = "ends too early: the file was cut" if cut else f"is damaged ({str(error).strip().rpartition(': ')[2]})"
                raise _damaged(name, "zstd", said, unpacked_bytes) from error
            if not piece:
                return
            unpacked_bytes += len(piece)
            _check_ratio(name, unpacked_bytes, file.tell())
            yield piece


def _check_ratio(name: str, unpacked_bytes: int, packed_bytes: int) -> None:
    if unpacked_bytes > BOMB_FROM_BYTES and unpacked_bytes > MOST_UNPACKED_RATIO * packed_bytes:
        raise DataError(
            f"unpacks to more than {MOST_UNPACKED_RATIO} times its size ({unpacked_bytes:,} bytes from {packed_bytes:,} so far): a bomb?",
            where=name,
            next_step="unpack it yourself where there is room, look at it, and name the unpacked file",
        )


def _damaged(name: str, packing: str, said: str, unpacked_bytes: int) -> DataError:
    tool = {"gzip": "gzip", "zstd": "zstd"}[packing]
    return DataError(
        f"the {packing} data {said}; {unpacked_bytes:,} bytes could be unpacked before, and what follows is lost",
        where=name,
        next_step=f"fetch or pack the file again; {tool} -dc '{name}' > part.jsonl writes what is whole",
    )


def in_utf_8(chunks: Iterator[bytes], encoding: str, name: str, said: Callable[[str], None]) -> Iterator[bytes]:
    """The same text in UTF-8. `said` gets notes for the user: a file that is UTF-8 is probably not meant by another encoding.

    Raises DataError where the encoding is unknown or a byte has no meaning in it.
    """
    codec = _codec(encoding)
    first = next(chunks, b"")
    chunks = chain([first], chunks)
    if codec in ("utf-8", "utf-8-sig"):
        yield from chunks
        return
    if first.startswith(codecs.BOM_UTF8):
        said(f"begins with the mark of UTF-8, and is read as UTF-8, not as {encoding}")
        yield from chunks
        return
    decoder: Any = codecs.getincrementaldecoder(codec)()
    likely = _Likely()
    offset_bytes = 0
    for chunk in chunks:
        likely.look(chunk)
        yield _recoded(decoder, chunk, False, offset_bytes, encoding, name)
        offset_bytes += len(chunk)
    yield _recoded(decoder, b"", True, offset_bytes, encoding, name)
    if likely.is_utf_8():
        said(f"was read as {encoding}, as data.encoding says, but all of it is UTF-8, too: check that its letters are right")


class _Likely:
    """Whether a text is UTF-8 with letters beyond ASCII, which a text in another encoding hardly ever is by chance."""

    def __init__(self) -> None:
        self._decoder: Any = codecs.getincrementaldecoder("utf-8")()
        self._is_valid, self._is_ascii = True, True

    def look(self, chunk: bytes, final: bool = False) -> None:
        """The next piece of the text."""
        self._is_ascii = self._is_ascii and chunk.isascii()
        try:
            self._is_valid = self._is_valid and self._decoder.decode(chunk, final) is not None
        except UnicodeDecodeError:
            self._is_valid = False

    def is_utf_8(self) -> bool:
        """After the last piece."""
        self.look(b"", final=True)
        return self._is_valid and not self._is_ascii


def _recoded(decoder: Any, chunk: bytes, final: bool, offset_bytes: int, encoding: str, name: str) -> bytes:
    kept = len(decoder.getstate()[0])
    try:
        text: str = decoder.decode(chunk, final)
        return text.encode("utf-8")
    except UnicodeDecodeError as error:
        place = offset_bytes - kept + error.start
        problem = f"byte 0x{error.object[error.start]:02x} at offset {place:,} of the file has no meaning in {encoding}"
        raise DataError(problem, where=name, next_step=RIGHT_ENCODING) from error
    except UnicodeError as error:
        raise DataError(f"is not {encoding} ({error})", where=name, next_step=RIGHT_ENCODING) from error


def _codec(encoding: str) -> str:
    try:
        found = codecs.lookup(encoding)
        "".encode(encoding)  # LookupError where it is no encoding of text (rot13, zlib)
    except (LookupError, UnicodeError) as error:
        raise DataError(
            f"{encoding} is no encoding of text that is known", where="data.encoding", next_step="utf-8, cp1252, utf-16, gb18030, shift_jis ..."
        ) from error
    return found.name

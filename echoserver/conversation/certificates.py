"""When a certificate expires, which `ssl` does not tell about a server's own certificate.

The certificate is read as DER (X.690), as far as its validity (RFC 5280, section 4.1). OpenSSL has
accepted it before, so it is not checked again.
"""

import re
from binascii import a2b_base64
from collections.abc import Iterator
from datetime import UTC, datetime

_PEM = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----(.*?)-----END", re.DOTALL)
_VERSION, _GENERALIZED_TIME = 0xA0, 0x18  # tags
_LONG_FORM = 0x80  # of a length: the number of bytes that hold it
_FIRST_YEAR = 1950  # of the years that are written with two digits


def expiry(pem: bytes) -> float:
    """Return when the first certificate of a PEM text expires, in Unix time.

    Raises:
        ValueError: The certificate cannot be read.
    """
    match = _PEM.search(pem)
    if match is None:
        raise ValueError("no certificate in PEM form")
    try:
        ((_, certificate),) = _elements(a2b_base64(match[1]), max_count=1)
        (_, to_be_signed), *_ = _elements(certificate)
        parts = [(tag, content) for tag, content in _elements(to_be_signed) if tag != _VERSION]
        _serial_number, _algorithm, _issuer, (_, validity), *_ = parts
        _not_before, (tag, not_after) = _elements(validity)
    except IndexError:
        raise ValueError("a certificate that is cut short") from None
    text = not_after.decode("ascii")
    if tag != _GENERALIZED_TIME:  # UTCTime, with two digits for the year
        century = _FIRST_YEAR // 100 + (int(text[:2]) < _FIRST_YEAR % 100)
        text = f"{century}{text}"
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _elements(data: bytes, max_count: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each element; each tag here is a single byte."""
    position = count = 0
    while position < len(data) and count != max_count:
        tag, size, start = data[position], data[position + 1], position + 2
        if size >= _LONG_FORM:
            digits = size - _LONG_FORM
            size = int.from_bytes(data[start : start + digits], "big")
            start += digits
        yield tag, data[start : start + size]
        position, count = start + size, count + 1

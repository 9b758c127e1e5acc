"""URLs of SQLite databases, as SQLAlchemy reads them."""

from pathlib import Path
from urllib.parse import quote, unquote

_URI = "?uri=true"


def sqlite_url(file: Path, driver: str = "sqlite") -> str:
    """The URL of ``file``: a question mark in its path, which would begin the options of a URL, is quoted."""
    return f"{driver}:///file:{quote(str(file), safe='')}{_URI}" if "?" in str(file) else f"{driver}:///{file}"


def file_of(url: str) -> Path | None:
    """The file that a URL of ``sqlite_url`` names; None for other databases and servers."""
    if not url.startswith("sqlite:///"):
        return None
    path = url.removeprefix("sqlite:///")
    is_quoted = path.startswith("file:") and path.endswith(_URI)
    return Path(unquote(path.removeprefix("file:").removesuffix(_URI)) if is_quoted else path)

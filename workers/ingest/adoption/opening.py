"""The origin of a URL: which of the libraries reads what lies there."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from shared.errors import DocumentError
from shared.urls import CollectionUrl, folder_url
from workers.attempts.context import Context
from workers.ingest.adoption.origin import Origin


@contextmanager
def open_origin(context: Context, url: CollectionUrl) -> Iterator[Origin]:
    """The origin at this URL. Raises DocumentError if it may not be read or cannot be, Unavailable
    if it does not answer."""
    # Imported here: who imports the handlers of steps needs neither library.
    if not url.is_folder:
        from workers.ingest.adoption.chroma import server_origin

        with server_origin(context, url) as server:
            yield server
        return
    settings = context.process.settings
    if not settings.permits_folder(url.place):
        raise DocumentError(
            f"{url}: is not in a folder that sources may read. SLUICE_SOURCE_FOLDERS names those."
        )
    opened: AbstractContextManager[Origin]
    if _holds_faiss(context, url):
        from workers.ingest.adoption.langchain_faiss import folder_origin as faiss_origin

        opened = faiss_origin(context, url)
    else:
        from workers.ingest.adoption.chroma import folder_origin

        opened = folder_origin(context, url)
    with opened as origin:
        yield origin


def _holds_faiss(context: Context, url: CollectionUrl) -> bool:
    """Whether the folder is one of LangChain's FAISS. Raises DocumentError if it is none that can
    be adopted."""
    folder = url.folder
    try:
        real = folder_url(f"file://{folder.resolve()}")
        if not folder.is_dir():
            raise DocumentError(f"{url}: there is no such folder on this worker. Correct its path.")
        if not context.process.settings.permits_folder(real):
            raise DocumentError(f"{url}: is a link that leads out of the folders that may be read.")
        names = {path.name for path in folder.iterdir()}
    except (OSError, ValueError) as error:
        raise DocumentError(
            f"{url}: the workers may not read it ({error}). Give them the right to."
        ) from error
    if "chroma.sqlite3" in names:
        return False
    if any(name.endswith(".pkl") and f"{name[:-4]}.faiss" in names for name in names):
        return True
    if any(name.endswith(".parquet") for name in names):
        raise DocumentError(
            f"{url}: was written by Chroma before version 0.4, which the installed one does not "
            "read. Convert it with the program chroma-migrate (pip install chroma-migrate)."
        )
    raise DocumentError(
        f"{url}: has neither chroma.sqlite3, as folders of Chroma do, nor index.faiss and "
        "index.pkl, as those of LangChain's FAISS do. Name the folder that has."
    )

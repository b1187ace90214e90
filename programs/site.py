"""Site: where requests go, and what is the same in all of them."""

import base64
import functools
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from .lm import LMError

CONNECT_LIMIT: Final = 15.0
"""Seconds after which a connection that hasn't been made counts as missing; less where an attempt has less."""

OWN: Final = ("content-length", "transfer-encoding", "connection")
"""Headers that are the client's alone."""

_LINE: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+: [^\r\n\0]*\r\n")


@dataclass(frozen=True)
class Site:
    """Where requests go.

    Attributes:
        name: the model, for messages.
        url: the address that is posted to.
        headers: sent with every request.
        timeout: seconds for one attempt, from connecting to the last byte.
        proxy: the proxy to it, if there is one.
    """

    name: str
    url: str
    headers: Mapping[str, str]
    timeout: float
    proxy: str | None

    @property
    def connect_limit(self) -> float:
        """Seconds for making a connection: a connection is missed before an attempt's time is over."""
        return min(0.9 * self.timeout, CONNECT_LIMIT)

    @functools.cached_property
    def host(self) -> str:
        """The server's name, as it is asked for and sent, or its address.

        Raises:
            ValueError: If it is no name.

        """
        name = urlsplit(self.url).hostname or ""
        if name.isascii():
            return name
        import idna

        # Python's own codec follows the rules of 2003, by which some names are those of another host.
        return idna.encode(name, uts46=True).decode()

    @functools.cached_property
    def port(self) -> int:
        """The server's port."""
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @functools.cached_property
    def tls(self) -> ssl.SSLContext | None:
        """What secures the connections: the system's authorities, or those that SSL_CERT_FILE names; None for http."""
        if urlsplit(self.url).scheme != "https":
            return None
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        return context

    @functools.cached_property
    def head(self) -> bytes:
        """A request's head up to the number of its body's bytes.

        Raises:
            ValueError: If a header holds what none may, or the key is given twice: as one, and in the address.

        """
        parts = urlsplit(self.url)
        host = f"[{self.host}]" if ":" in self.host else self.host
        fields = {"Host": f"{host}:{parts.port}" if parts.port else host}
        if parts.username is not None or parts.password is not None:
            if any(name.lower() == "authorization" for name in self.headers):
                raise ValueError("the address names a user, and a key is given as well")
            user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
            fields["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
        fields |= {"Accept-Encoding": "gzip, deflate", "User-Agent": "vitrify"}
        # What the user gives takes the place of what is set here, but for what only the client can know.
        chosen = {name.lower(): (name, value) for name, value in (fields | dict(self.headers)).items()}
        lines = [f"{name}: {value}\r\n" for key, (name, value) in chosen.items() if key not in OWN]
        if not all(map(_LINE.fullmatch, lines)):
            raise ValueError("a header has characters that no header may hold")
        target = quote(parts.path, safe="/%:@!$&'()*+,;=~")
        return f"POST {target} HTTP/1.1\r\n{''.join(lines)}Content-Length: ".encode()


def interrupted(name: str) -> LMError:
    """Return the error of a call whose client is closed meanwhile."""
    return LMError(f"{name}: the client was closed while the call was in flight.", cause="connection", retryable=False)


def proxy_for(url: str) -> str | None:
    """Return the proxy that the environment names for an address; never one for this machine itself.

    Read once per client: aiohttp's `trust_env` looks at the environment for every request, and into ~/.netrc.
    """
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    host = parts.hostname or ""
    if host == "localhost" or host.startswith("127.") or host == "::1" or proxy_bypass(host):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")

"""Proxied: the connections of one event loop to a server behind a proxy; aiohttp's, which knows how to ask one."""

import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .connections import KEPT, Unconnected, Untrusted
from .response import Broken
from .site import Site

if TYPE_CHECKING:
    import aiohttp


class Proxied:
    """What `Connections` is, through a proxy; called on its loop alone."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._session: aiohttp.ClientSession | None = None

    async def post(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers (names in small letters) and content of the answer; raise what `Connections` does."""
        import aiohttp

        site = self._site
        session = self._session or self._begin()
        try:
            async with session.post(site.url, data=body, allow_redirects=False, proxy=site.proxy) as response:
                headers = {name.lower(): value for name, value in response.headers.items()}
                return response.status, headers, await response.read()
        except aiohttp.ConnectionTimeoutError:
            failure: Exception = Unconnected("no answer")
        except aiohttp.InvalidURL:  # its text is the address, password and all
            failure = Untrusted("the proxy's address is no web address")
        except (aiohttp.ClientSSLError, ssl.SSLError) as error:
            failure = Untrusted(f"{type(error).__name__}: {error}")
        except aiohttp.ClientConnectorError as error:
            failure = Unconnected(error.strerror or "failed")
        except aiohttp.ClientError as error:
            failure = Broken(type(error).__name__)
        # Raised here and not where it was caught: aiohttp's errors may hold headers, and stay out of the chain.
        raise failure

    def _begin(self) -> "aiohttp.ClientSession":
        import aiohttp

        # No limit on connections: who calls owns the concurrency.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._site.headers,
            # An attempt has its time in `Pool.post`; a connection is missed before that.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._site.connect_limit),
        )
        return self._session

    async def close(self) -> None:
        """Drop all connections; requests in flight fail."""
        if self._session is not None:
            await self._session.close()

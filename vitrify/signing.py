"""Detached signatures: Ed25519 over a file's bytes, 64 bytes in FILE.sig, with a key that the user holds.

`openssl pkeyutl -verify -pubin -inkey public.pem -rawin -in desk.json -sigfile desk.json.sig` checks the same.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from . import arguments
from .boundary import boundary
from .programs.files import check_writable, read_bounded, write_atomically
from .signatures.errors import ArtifactError, RequestError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PASSPHRASE = "VITRIFY_KEY_PASSPHRASE"
"""The variable that opens an encrypted private key."""

_MOST_BYTES = 64 * 1024
_MAKE = "make one with `openssl genpkey -algorithm ed25519 -out key.pem`"
_PUBLIC = "`openssl pkey -in key.pem -pubout -out public.pem` writes the public half"


def sign_command(artifact: arguments.ArtifactFile, key: arguments.PrivateKey, debug: arguments.Debug = False) -> None:
    """Sign an artifact with a key of your own.

    Writes ARTIFACT.sig (Ed25519 over the file's bytes), which `verify --key` checks with the key's public half.
    """
    with boundary(debug):
        from .programs.artifact import read_artifact

        private = read_private(key)
        read_artifact(artifact)  # nobody signs a file that is damaged
        typer.echo(f"wrote {sign(artifact, private)}")


def signature_of(artifact: Path) -> Path:
    """Return where an artifact's signature is."""
    return artifact.with_name(f"{artifact.name}.sig")


def check_signable(artifact: Path) -> None:
    """Raise ArtifactError unless the signature of an artifact can be written beside it."""
    check_writable(signature_of(artifact))


def sign(artifact: Path, key: "Ed25519PrivateKey") -> Path:
    """Write the signature over a file's bytes beside it, and return its path."""
    from .programs.artifact import MOST_BYTES

    path = signature_of(artifact)
    write_atomically(path, key.sign(read_bounded(artifact, MOST_BYTES)))
    return path


def signed_by(data: bytes, signature: Path, key: "Ed25519PublicKey") -> bool:
    """Say whether a signature file is that of `data` by the holder of the key.

    Raises:
        RequestError: If there is no such file.
    """
    from cryptography.exceptions import InvalidSignature

    try:
        written = read_bounded(signature, _MOST_BYTES)
    except ArtifactError as error:
        raise RequestError(
            f"{str(error).partition(';')[0]}: `a signature is beside its file`; name it with --signature, or make it "
            "with `vitrify sign`."
        ) from error
    try:
        key.verify(written, data)
    except InvalidSignature:
        return False
    return True


def read_private(path: Path) -> "Ed25519PrivateKey":
    """Return the private key in a PEM file; one that is encrypted is opened with VITRIFY_KEY_PASSPHRASE.

    Raises:
        RequestError: If the file holds no such key, or `cryptography` isn't installed.
    """
    serialization = _library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    data, passphrase = _key_file(path), os.environ.get(PASSPHRASE)
    encrypted = b"ENCRYPTED" in data
    if encrypted and not passphrase:
        raise RequestError(f"{path} is encrypted: `{PASSPHRASE} opens the key`, and it isn't set; set it.")
    try:
        key = serialization.load_pem_private_key(data, passphrase.encode() if encrypted and passphrase else None)
    except Exception as error:  # the library raises whatever its parsers meet
        wrong = "the passphrase is wrong, or it is damaged" if encrypted else "it holds no private key in PEM"
        raise RequestError(f"{path} can't be used as a key: {wrong}; {_MAKE}.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise RequestError(f"{path} is another kind of key: `artifacts are signed with Ed25519`; {_MAKE}.")
    return key


def read_public(path: Path) -> "Ed25519PublicKey":
    """Return the public key in a PEM file.

    Raises:
        RequestError: If the file holds no such key, or `cryptography` isn't installed.
    """
    serialization = _library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    data = _key_file(path)
    if b"PRIVATE KEY" in data:
        raise RequestError(f"{path} is a private key: `a signature is checked with the public half`; {_PUBLIC}.")
    try:
        key = serialization.load_pem_public_key(data)
    except Exception as error:  # the library raises whatever its parsers meet
        raise RequestError(f"{path} can't be used as a key: it holds no public key in PEM; {_PUBLIC}.") from error
    if not isinstance(key, Ed25519PublicKey):
        raise RequestError(f"{path} is another kind of key: `artifacts are signed with Ed25519`; {_PUBLIC}.")
    return key


def _key_file(path: Path) -> bytes:
    try:
        return read_bounded(path, _MOST_BYTES)
    except ArtifactError as error:
        raise RequestError(f"{str(error).partition(';')[0]}; name the key's PEM file.") from error


def _library() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ModuleNotFoundError as error:
        raise RequestError(
            "signatures need cryptography, which isn't installed: run `pip install 'vitrify[sign]'`."
        ) from error
    return serialization

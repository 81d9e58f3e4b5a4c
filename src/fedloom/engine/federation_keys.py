"""Make the keys of a federation: an authority, the server's certificate, and a key for each site.

DIR/authority/    ca.key, which signs; keep it away from the server
DIR/server/       ca.crt, server.crt, server.key, and sites/NAME.pub of each site
DIR/site-NAME/    ca.crt, and node.key; hand this folder, and nothing else, to the site's owner
"""

# Flower comes with an extra, which need not be installed where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedloom.engine.flower_processes import Security
from fedloom.system.errors import UserError
from fedloom.system.json_files import write_atomic

YEARS, AUTHORITY_YEARS = 2, 10
"""Years for which the server's certificate is valid, and the authority's, which signs the next ones of the server."""

CURVE = ec.SECP384R1()
PEM, OPENSSH = serialization.Encoding.PEM, serialization.Encoding.OpenSSH


def make_keys(
    folder: Path, hosts: Sequence[str], sites: Sequence[str], now: datetime | None = None
) -> list[Path]:
    """Make the missing keys of a federation; existing ones stay unchanged, so that sites can be added later.

    Only a server's certificate that has expired, or lacks one of `hosts`, is replaced; the new one has the earlier names, too.

    Args:
        folder: The folder of all keys.
        hosts: Names and addresses at which sites reach the server; those of the loopback device are added.
        sites: Names of sites.
        now: The time from which certificates are valid; None is now.

    Returns:
        The folders with new keys.

    Raises:
        UserError: A name cannot name a site or a host, or a certificate needs the authority's key and that is missing.
    """
    if wrong := [one for one in sites if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", one)]:
        raise UserError(f'{wrong[0]!r} cannot name a site; use at most 80 letters, digits, ".", "_" and "-"')
    names = dict.fromkeys((*map(_host_name, hosts), "localhost", "127.0.0.1", "::1"))
    begin, changed = now or datetime.now(UTC), list[Path]()
    authority, server = folder / "authority", folder / "server"
    if not (server / "ca.crt").exists():
        key = ec.generate_private_key(CURVE)
        _secret(authority / "ca.key", _private(key))
        write_atomic(
            server / "ca.crt", _certificate("fedloom authority", key, key, None, begin).public_bytes(PEM)
        )
        changed.append(authority)
    if lacking := _lacking(server / "server.crt", list(map(_host_name, hosts)), begin):
        if not (authority / "ca.key").exists():
            raise UserError(
                f"{server / 'server.crt'} {lacking}, and {authority / 'ca.key'} is missing, so no certificate can be signed; "
                "run this where that file is, or make all keys anew"
            )
        _require_valid(server / "ca.crt", begin, "make all keys anew, in another folder")
        signer = serialization.load_pem_private_key((authority / "ca.key").read_bytes(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        names |= dict.fromkeys(_names_in(server / "server.crt"))
        key = ec.generate_private_key(CURVE)
        certificate = _certificate("fedloom server", key, signer, list(names), begin)
        _secret(server / "server.key", _private(key))
        write_atomic(server / "server.crt", certificate.public_bytes(PEM))
        changed.append(server)
    for site in sites:
        place = folder / f"site-{site}"
        if (server / "sites" / f"{site}.pub").exists():
            continue
        key = ec.generate_private_key(CURVE)
        public = key.public_key().public_bytes(OPENSSH, serialization.PublicFormat.OpenSSH)
        _secret(
            place / "node.key",
            key.private_bytes(PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()),
        )
        write_atomic(place / "ca.crt", (server / "ca.crt").read_bytes())
        write_atomic(server / "sites" / f"{site}.pub", public)
        changed.append(place)
    return changed


def server_security(folder: Path) -> Security:
    """Return the security of a server from the folder `server` of `make_keys`, or the folder above it.

    Raises:
        UserError: A file is missing.
    """
    place = folder / "server" if (folder / "server").is_dir() else folder
    authority, certificate, key = (place / name for name in ("ca.crt", "server.crt", "server.key"))
    _require([authority, certificate, key])
    public = tuple(sorted(one.absolute() for one in place.glob("sites/*.pub")))
    return Security(authority.absolute(), certificate.absolute(), key.absolute(), public)


def site_security(folder: Path) -> Security:
    """Return the security of a site from its folder of `make_keys`.

    Raises:
        UserError: A file is missing.
    """
    authority, key = (folder / name for name in ("ca.crt", "node.key"))
    _require([authority, key])
    return Security(authority.absolute(), None, key.absolute())


def server_context(security: Security) -> ssl.SSLContext:
    """Return the TLS context of a server, which shows its certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    assert security.certificate is not None
    context.load_cert_chain(security.certificate, security.key)
    return context


def trusting_context(security: Security) -> ssl.SSLContext:
    """Return the TLS context of a client, which trusts the authority."""
    return ssl.create_default_context(cafile=str(security.authority))


def require_usable(security: Security) -> None:
    """Check the files of a server's or a site's keys before they are used.

    Raises:
        UserError: A file is damaged or belongs to other keys, or a certificate is not valid now; the message names it.
    """
    authority, key = security.authority, security.key
    assert authority is not None
    assert key is not None
    now = datetime.now(UTC)
    trusted = _require_valid(authority, now, "make all keys anew with `fedloom keys`")
    public = _public_key(key)
    if security.certificate is None:
        return
    shown = _require_valid(
        security.certificate, now, "run `fedloom keys` again where its folder `authority` is"
    )
    if shown.public_key() != public:
        raise UserError(f"{security.certificate} is not the certificate of {key}; copy both from one folder")
    try:
        shown.verify_directly_issued_by(trusted)
    except (ValueError, InvalidSignature):
        raise UserError(
            f"{security.certificate} was not signed by the authority of {authority}; copy both from one folder"
        ) from None


def _public_key(file: Path) -> object:
    """Return the public key of a file with a private one, in the form of the server's or of a site's."""
    content = file.read_bytes()
    try:
        if b"OPENSSH" in content:
            return serialization.load_ssh_private_key(content, None).public_key()
        return serialization.load_pem_private_key(content, None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UserError(f"{file} holds no private key of `fedloom keys`; copy it again") from None


def _certificate_in(file: Path) -> x509.Certificate:
    content = file.read_bytes()
    try:
        return x509.load_pem_x509_certificate(content)
    except ValueError:
        raise UserError(f"{file} holds no certificate; copy it again") from None


def _require_valid(file: Path, now: datetime, remedy: str) -> x509.Certificate:
    """Read a certificate that is valid now."""
    found = _certificate_in(file)
    if now > found.not_valid_after_utc:
        raise UserError(f"{file} expired on {found.not_valid_after_utc:%-d %B %Y}; {remedy}")
    if now < found.not_valid_before_utc:
        raise UserError(
            f"{file} is valid from {found.not_valid_before_utc:%-d %B %Y} on, and this machine's clock says "
            f"{now:%-d %B %Y}; set the clock"
        )
    return found


def _lacking(file: Path, hosts: Sequence[str], now: datetime) -> str | None:
    """Return why a server's certificate must be signed, or None."""
    if not file.exists() or not file.with_suffix(".key").exists():
        return "must be signed"
    if now > _certificate_in(file).not_valid_after_utc:
        return "has expired"
    missing = [one for one in hosts if one not in _names_in(file)]
    return f"does not name {missing[0]}" if missing else None


def _names_in(file: Path) -> list[str]:
    """Return the names and addresses in a certificate; none if there is no file."""
    if not file.exists():
        return []
    found = _certificate_in(file).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(one.value) for one in found]


def _host_name(text: str) -> str:
    """Return the name or address of a host as a certificate has it.

    Raises:
        UserError: It is something else, such as an address with a port.
    """
    plain = text.removeprefix("[").removesuffix("]")
    try:
        return str(ipaddress.ip_address(plain))
    except ValueError:
        pass
    if not re.fullmatch(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?", text):
        raise UserError(
            f"--server: {text!r} is not the name or the address of a host, such as fed.example.org or 10.0.0.7; "
            "leave the scheme and the port out"
        )
    return text


def _require(files: Sequence[Path]) -> None:
    if missing := [one for one in files if not one.is_file()]:
        raise UserError(f"{missing[0]} is missing; `fedloom keys` makes such a folder")


def _secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    before = os.umask(0o077)
    try:
        write_atomic(path, content)
    finally:
        os.umask(before)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    hosts: Sequence[str] | None,
    begin: datetime,
) -> x509.Certificate:
    """Make the certificate of a server with the names `hosts`, or of the authority if these are None."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedloom authority")])
    owner = hosts is None
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - timedelta(days=1))
        .not_valid_after(begin + timedelta(days=365 * (AUTHORITY_YEARS if owner else YEARS)))
        .add_extension(x509.BasicConstraints(ca=owner, path_length=0 if owner else None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .add_extension(
            x509.KeyUsage(not owner, False, False, False, False, owner, owner, False, False), critical=True
        )
    )
    if hosts is not None:
        built = built.add_extension(
            x509.SubjectAlternativeName([_host(one) for one in hosts]), critical=False
        )
        built = built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return built.sign(signer, hashes.SHA384())


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)

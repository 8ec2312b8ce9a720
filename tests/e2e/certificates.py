"""Certificates for the tests: authorities, servers, clients, also expired ones."""

from __future__ import annotations

import ipaddress
from datetime import datetime, timedelta, timezone

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


class Authority:
    """One that signs; its own certificate is `NAME.pem` in the folder."""

    def __init__(self, folder, name):
        self.folder, self.name = folder, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(name, name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def sign(self, name, *, hosts=(), expired=False, file=None):
        """Writes `FILE.pem` and `FILE.key` and returns their paths: for a server with its hosts, else for a client."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(name, self.name, key.public_key(), expired)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        usage = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName([*map(general_name, hosts)]), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        paths = self.folder / f"{file or name}.pem", self.folder / f"{file or name}.key"
        for path, text in zip(paths, (certificate, private)):
            path.write_bytes(text)
        return paths

    @staticmethod
    def _builder(name, issuer, public, expired=False):
        begin = datetime.now(timezone.utc) - timedelta(days=2)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + timedelta(days=1 if expired else 4))
        )


def general_name(host):
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)

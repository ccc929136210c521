"""TLS material in files: read whole, never with a key that others can read, and again after a renewal."""

import pytest

from hansa.errors import CertificateRejected, ConfigurationError, InvalidValue, KeyFileUnsafe
from hansa.federation.tls_authority import new_tls_key
from hansa.federation.tls_files import TlsFiles, TlsSource, read_tls


@pytest.fixture
def pki(network, tmp_path):
    return network.Pki(tmp_path)


def test_files_are_read_and_no_key_is_shown(pki):
    found = read_tls(pki.files("bank-1"))
    assert found.certificate_der == pki.certificates["bank-1"]
    assert found.authority_der == pki.authority.certificate
    assert b"PRIVATE KEY" in found.key
    assert "PRIVATE" not in repr(found)


def test_a_key_file_that_others_can_read_is_refused(pki):
    files = pki.files("bank-1")
    for mode in (0o640, 0o604, 0o620):
        files.key.chmod(mode)
        with pytest.raises(KeyFileUnsafe, match="0600"):
            read_tls(files)
    files.key.unlink()
    with pytest.raises(KeyFileUnsafe):
        read_tls(files)
    files.key.mkdir()
    with pytest.raises(KeyFileUnsafe):
        read_tls(files)


def test_files_that_are_missing_or_no_certificates_are_refused(pki, tmp_path):
    files = pki.files("bank-1")
    for name in ("authority", "certificate"):
        parts = {part: getattr(files, part) for part in ("authority", "certificate", "key")}
        with pytest.raises(ConfigurationError):
            read_tls(TlsFiles(**(parts | {name: tmp_path / "nothing"})))
        bad = tmp_path / "bad"
        bad.write_bytes(b"no certificate")
        with pytest.raises(CertificateRejected):
            read_tls(TlsFiles(**(parts | {name: bad})))
        bad.write_bytes(bytes(99999))
        with pytest.raises(ConfigurationError):
            read_tls(TlsFiles(**(parts | {name: bad})))
    files.key.write_bytes(b"no key")
    with pytest.raises(InvalidValue):
        read_tls(files)


def test_a_certificate_and_a_key_that_do_not_belong_together_are_never_used(pki):
    files = pki.files("bank-1")
    source = TlsSource(files)
    before, key = source.material(), files.key.read_bytes()
    files.key.write_bytes(new_tls_key())
    with pytest.raises(ConfigurationError, match="does not hold the key"):
        read_tls(files)
    assert source.material() is before
    files.key.unlink()
    assert source.material() is before
    files.key.write_bytes(key)
    files.key.chmod(0o600)
    assert source.material() == before


def test_renewed_files_are_used_and_unchanged_ones_give_the_same_object(pki):
    source = TlsSource(pki.files("bank-1"))
    before = source.material()
    assert source.material() is before
    pki.files("bank-1")
    after = source.material()
    assert after.certificate_der == pki.certificates["bank-1"] != before.certificate_der
    assert source.material() is after

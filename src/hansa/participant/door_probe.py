"""A door of the coordinator tried step by step: name, connection, TLS. Which step fails says what is wrong.

The services' own clients join these steps into one word, unreachable; a person who has to mend it needs to know which.
The hint of an error that is raised here is the command that mends it, or shows more.
"""

import shlex
import socket
import ssl

from hansa.errors import AuthenticationFailed, ConfigurationError, CoordinatorUnreachable
from hansa.federation.fields import host_and_port
from hansa.federation.mending import SET_CLOCK
from hansa.federation.tls_files import TlsFiles

_OTHER_NAME = (62, 64)  # OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH
_OTHER_TIME = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED
_ALPN = ["h2"]  # gRPC's servers end a connection that does not name it


def try_door(address: str, authority: bytes, *, own: TlsFiles | None, is_grpc: bool, seconds: float) -> str:
    """Resolve a name, connect and shake hands; whether the own certificate is accepted a call has to show.

    Args:
        address: `host:port`.
        authority: Certificate of the pinned authority, DER.
        own: The certificate to show and its key, where the door asks for one.
        is_grpc: Whether gRPC is spoken there.
        seconds: Longest wait of each step.

    Returns:
        The address that answered.

    Raises:
        CoordinatorUnreachable: The name does not resolve, or nobody answers there.
        AuthenticationFailed: Who answers speaks no TLS, or shows a certificate that does not hold.
        ConfigurationError: The own certificate cannot be used.
    """
    host, port = host_and_port(address)
    place = f"{shlex.quote(host)} {port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise CoordinatorUnreachable(
            f"the name {host!r} does not resolve: {error.strerror}", hint=f"getent hosts {shlex.quote(host)}"
        ) from error
    context = _context(authority, own, is_grpc=is_grpc)
    try:
        connection = socket.create_connection((host, port), seconds)
    except TimeoutError as error:
        told = f"{address} does not answer within {seconds:g} s: a firewall drops it, or the machine is off"
        raise CoordinatorUnreachable(told, hint=f"nc -vz -w 5 {place}") from error
    except ConnectionRefusedError as error:
        told = f"{address} refuses the connection: nobody listens there"
        raise CoordinatorUnreachable(told, hint=f"nc -vz -w 5 {place}") from error
    except OSError as error:
        told = f"{address} cannot be reached: {error.strerror}"
        raise CoordinatorUnreachable(told, hint=f"nc -vz -w 5 {place}") from error
    with connection:
        _shake_hands(context, connection, host, address)
    return str(found[0][4][0])


def _context(authority: bytes, own: TlsFiles | None, *, is_grpc: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=authority)
    if is_grpc:
        context.set_alpn_protocols(_ALPN)
    if own is not None:
        try:
            context.load_cert_chain(own.certificate, own.key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"{own.certificate.name} and {own.key.name} cannot be used") from error
    return context


def _shake_hands(context: ssl.SSLContext, connection: socket.socket, host: str, address: str) -> None:
    show = f"openssl s_client -connect {shlex.quote(address)} -showcerts </dev/null"
    try:
        context.wrap_socket(connection, server_hostname=host).close()
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in _OTHER_NAME:
            told = f"the certificate at {address} is not for {host!r}"
            mend = f"hansa consortium renew --address {shlex.quote(host)}"
        elif error.verify_code in _OTHER_TIME:
            told = f"the certificate at {address} has ended, or this clock is wrong: {error.verify_message}"
            mend = f"{SET_CLOCK}; at the coordinator: hansa consortium renew"
        else:
            told = f"the certificate at {address} is of another authority: {error.verify_message}"
            mend = show
        raise AuthenticationFailed(told, hint=mend) from error
    except TimeoutError as error:
        told = f"{address} takes the connection and says nothing"
        raise CoordinatorUnreachable(told, hint=show) from error
    except ssl.SSLError as error:
        told = f"{address} does not speak TLS as the coordinator does: {error.reason or 'no reason'}"
        raise AuthenticationFailed(told, hint=show) from error
    except OSError as error:
        told = f"{address} ends the connection during the handshake: {error.strerror or 'closed'}"
        raise CoordinatorUnreachable(told, hint=show) from error

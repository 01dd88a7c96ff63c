"""A broker as installations have it: TLS, certificates of clients, SASL and rights."""

from datetime import timedelta
from pathlib import Path

from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from tests.kafka_broker import OPEN, START_S, KafkaBroker, Listener
from tests.kafka_certificates import Authority, Certificate

# Users of SASL; those of TLS are the names of their certificates.
PASSWORD = "p=ss #w0rd"  # noqa: S105 - with what a file of properties could trip over
JAAS = "org.apache.kafka.common.security"


class SecuredBroker(KafkaBroker):
    """Tests steer it by the listener OPEN, which may do anything.

    Attributes:
        authority: that signed the certificates of its listeners.
        client: a certificate for the listener MUTUAL; its user is `CN=client`.
    """

    def __init__(self, folder: Path) -> None:
        """Make certificates and write the configuration; nothing runs before `start`.

        Args:
            folder: for certificates.

        Raises:
            UnavailableError: Kafka or Java is not installed.
        """
        self.authority = Authority(folder, "authority")
        self.client = self.authority.sign("client", password=PASSWORD.encode())
        good = self.authority.sign("broker")
        elsewhere = self.authority.sign("elsewhere", host="kafka.elsewhere.example")
        expired = self.authority.sign("expired", lasts=timedelta(days=-1))
        users = " ".join(f'user_{name}="{PASSWORD}"' for name in ("theon", "nobody"))
        plain = f"{JAAS}.plain.PlainLoginModule required {users};"
        super().__init__(
            listeners=(
                OPEN,
                Listener(
                    "SASL",
                    "SASL_SSL",
                    {
                        **_served(good),
                        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
                        "plain.sasl.jaas.config": plain,
                        "scram-sha-512.sasl.jaas.config": (
                            f"{JAAS}.scram.ScramLoginModule required;"
                        ),
                    },
                ),
                Listener(
                    "MUTUAL",
                    "SSL",
                    {
                        **_served(good),
                        "ssl.client.auth": "required",
                        "ssl.truststore.type": "PEM",
                        "ssl.truststore.location": str(self.authority.file),
                    },
                ),
                Listener("ELSEWHERE", "SSL", _served(elsewhere)),
                Listener("EXPIRED", "SSL", _served(expired)),
            ),
            properties={
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": "User:ANONYMOUS",
            },
        )

    def add_scram_user(self, name: str) -> None:
        """A user of SCRAM-SHA-512 with `PASSWORD`."""
        made = UserScramCredentialUpsertion(
            name, ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096), PASSWORD.encode()
        )
        admin = self.admin()
        for done in admin.alter_user_scram_credentials([made]).values():
            done.result(START_S)

    def allow(
        self, user: str, kind: ResourceType, name: str, *operations: AclOperation
    ) -> list[AclBinding]:
        """Give a user rights to what has a name; returns them for `forbid`."""
        rights = [_right(user, kind, name, operation) for operation in operations]
        admin = self.admin()
        for done in admin.create_acls(rights).values():
            done.result(START_S)
        return rights

    def forbid(self, rights: list[AclBinding]) -> None:
        """Take rights away."""
        admin = self.admin()
        filters = [
            AclBindingFilter(
                right.restype,
                right.name,
                right.resource_pattern_type,
                right.principal,
                right.host,
                right.operation,
                right.permission_type,
            )
            for right in rights
        ]
        for done in admin.delete_acls(filters).values():
            done.result(START_S)


def _right(user: str, kind: ResourceType, name: str, operation: AclOperation) -> AclBinding:
    pattern, allow = ResourcePatternType.LITERAL, AclPermissionType.ALLOW
    return AclBinding(kind, name, pattern, f"User:{user}", "*", operation, allow)


def _served(certificate: Certificate) -> dict[str, str]:
    return {"ssl.keystore.type": "PEM", "ssl.keystore.location": str(certificate.both)}

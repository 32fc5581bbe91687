"""AWS KMS as moto's server has it, with IAM: a principal is an IAM user with a policy of deploy/key-services.

moto checks signatures and the actions of policies; which key a request to KMS names is told to it here. It
refuses no disabled key, and none that waits for its deletion: these refusals are scripted.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import boto3
import httpx2
import pytest
from moto import settings as moto_settings
from moto.kms.responses import KmsResponse
from moto.server import ThreadedMotoServer

from evergrant_server.crypto.key_services.bound import BoundKeyService
from evergrant_server.crypto.key_services.port import ServicePurpose
from tests.fakes.key_services import acts
from tests.fakes.key_services.front import Front, Reply, Request, front_of
from tests.fakes.key_services.world import POLICIES, World

REGION = "eu-central-1"
_ACCOUNT = "123456789012"
_EVERYTHING = {"Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}}


def refusal(code: str, status: int = 400) -> Reply:
    """An error as KMS writes it (protocol AWS JSON 1.1)."""
    body = json.dumps({"__type": code, "message": f"a scripted {code}"}).encode()
    return Reply(status, body, {"content-type": "application/x-amz-json-1.1"})


class AwsWorld(World):
    BACKEND = acts.AWS

    def __init__(self, front: Front, address: str) -> None:
        self._front = front
        root = boto3.session.Session("root", "root", region_name=REGION)
        self._root = {name: root.client(name, endpoint_url=address) for name in ("iam", "kms")}
        with self.as_root("kms") as kms:
            self.keys = {purpose: self._new_key(kms, purpose) for purpose in ServicePurpose}
        self._user = self.principal("worker")
        self.url = "aws-kms:alias/evergrant-{purpose}"
        self.environment = self.environment_of(self._user)
        self.secrets = (self._user["SecretAccessKey"],)

    @classmethod
    @asynccontextmanager
    async def running(cls, folder: Path) -> AsyncIterator[Self]:
        KmsResponse._determine_resource = _key_of_request  # the hook of moto's IAM, which KMS lacks
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        await asyncio.to_thread(server.start)
        address = "http://{}:{}".format(*server.get_host_and_port())
        httpx2.post(f"{address}/moto-api/reset", trust_env=False)  # what it has is the process's
        try:
            async with front_of(address) as front:
                yield await asyncio.to_thread(cls, front, address)
        finally:
            await asyncio.to_thread(server.stop)
            del KmsResponse._determine_resource
            moto_settings.INITIAL_NO_AUTH_ACTION_COUNT = float("inf")  # as other tests of the process find it

    def environment_of(self, user: dict[str, str]) -> dict[str, str]:
        """What boto3 reads to be this user."""
        addresses = {"AWS_ENDPOINT_URL_KMS": self._front.url, "AWS_ENDPOINT_URL_STS": self._front.url}
        keys = {"AWS_ACCESS_KEY_ID": user["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": user["SecretAccessKey"]}
        return {**addresses, **keys, "AWS_REGION": REGION, "AWS_EC2_METADATA_DISABLED": "true"}

    def principal(self, role: str) -> dict[str, str]:
        """The access key of a new user with the policy of this role."""
        text = (POLICIES / f"aws-{role}.json").read_text(encoding="utf-8")
        text = text.replace("REGION", REGION).replace("ACCOUNT", _ACCOUNT)
        for purpose, key in self.keys.items():
            text = text.replace(f"ID-OF-EVERGRANT-{purpose.upper()}", key)
        with self.as_root("iam") as iam:
            with suppress(iam.exceptions.EntityAlreadyExistsException):
                iam.create_user(UserName=role)
            iam.put_user_policy(UserName=role, PolicyName="keys", PolicyDocument=text)
            return iam.create_access_key(UserName=role)["AccessKey"]

    @asynccontextmanager
    async def as_role(self, role: str) -> AsyncIterator[BoundKeyService]:
        """The service as a process of this role opens it."""
        user = self._user if role == "worker" else self.principal(role)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment_of(user).items():
                patch.setenv(name, value)
            service = self.opened()
            yield service
            await service.close()

    @contextmanager
    def as_root(self, service: str) -> Iterator[Any]:
        """A client to which moto's IAM permits everything, as long as the block lasts."""
        moto_settings.INITIAL_NO_AUTH_ACTION_COUNT = float("inf")
        try:
            yield self._root[service]
        finally:
            moto_settings.INITIAL_NO_AUTH_ACTION_COUNT = 0

    def _new_key(self, kms: Any, purpose: ServicePurpose) -> str:
        key = kms.create_key()["KeyMetadata"]["KeyId"]
        kms.create_alias(AliasName=f"alias/evergrant-{purpose}", TargetKeyId=key)
        return key

    @asynccontextmanager
    async def closed(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        with self._front.closed():
            yield

    @asynccontextmanager
    async def silent(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        with self._front.silent():
            yield

    @asynccontextmanager
    async def refusing(self, purpose: ServicePurpose, code: str) -> AsyncIterator[None]:
        with self._front.answers(refusal(code)):
            yield

    @asynccontextmanager
    async def failing(self, purpose: ServicePurpose, status: str) -> AsyncIterator[None]:
        with self._front.answers(refusal("InternalFailure", int(status))):
            yield

    @asynccontextmanager
    async def in_state(self, purpose: ServicePurpose, state: str) -> AsyncIterator[None]:
        """KMS refuses the use of the key, and says its state to whoever asks."""
        arn = f"arn:aws:kms:{REGION}:{_ACCOUNT}:key/{self.keys[purpose]}"
        metadata = {"KeyId": self.keys[purpose], "Arn": arn, "KeyState": state}

        def respond(request: Request) -> Reply:
            if request.headers["x-amz-target"].endswith("DescribeKey"):
                return Reply(200, json.dumps({"KeyMetadata": metadata}).encode())
            return refusal("KMSInvalidStateException")

        with self._front.answers(respond):
            yield

    @asynccontextmanager
    async def without_policy(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        with self.as_root("iam") as iam:
            document = iam.get_user_policy(UserName="worker", PolicyName="keys")["PolicyDocument"]
            iam.delete_user_policy(UserName="worker", PolicyName="keys")
        try:
            yield
        finally:
            with self.as_root("iam") as iam:
                iam.put_user_policy(UserName="worker", PolicyName="keys", PolicyDocument=json.dumps(document))

    @asynccontextmanager
    async def without_alias(self, purpose: ServicePurpose) -> AsyncIterator[None]:
        name = f"alias/evergrant-{purpose}"
        with self.as_root("kms") as kms:
            kms.delete_alias(AliasName=name)
        try:
            yield
        finally:
            with self.as_root("kms") as kms:
                kms.create_alias(AliasName=name, TargetKeyId=self.keys[purpose])


def _key_of_request(self: KmsResponse) -> str:
    """The ARN of the key that a request to moto names; of no key any, so that moto says that it has none."""
    backend, name = self.kms_backend, self._get_param("KeyId")
    alias = backend.get_key_id_from_alias(name) if name and name.startswith("alias/") else name
    key = backend.keys.get(alias) or next(iter(backend.keys.values()), None)
    return key.arn if key is not None else "*"

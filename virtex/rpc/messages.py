"""The messages of inference.proto, in a pool of their own.

Rules: protobuf's own pool knows one message by a name, and tritonclient and kserve put theirs there, in a process that
may serve too. Nothing is generated: inference.desc is what protoc makes of inference.proto.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_POOL = descriptor_pool.DescriptorPool()
for _file in descriptor_pb2.FileDescriptorSet.FromString(Path(__file__).with_name("inference.desc").read_bytes()).file:
    _POOL.AddSerializedFile(_file.SerializeToString())


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"virtex.{name}"))


Health = _message("Health")
HealthRequest = _message("HealthRequest")
InferRequest = _message("InferRequest")
InferResponse = _message("InferResponse")
ModelMetadata = _message("ModelMetadata")
ModelName = _message("ModelName")
Parameter = _message("Parameter")
ServerMetadata = _message("ServerMetadata")
State = _message("State")
StreamResponse = _message("StreamResponse")
Tensor = _message("Tensor")

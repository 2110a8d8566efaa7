"""Ray's ports bind to all interfaces: without the token they must answer nobody."""

import grpc
import pytest
import ray

_METHOD = "/ray.rpc.NodeInfoGcsService/CheckAlive"


def test_stranger_without_a_token_is_refused(ray_cluster: None) -> None:
    address = ray.get_runtime_context().gcs_address
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(_METHOD, request_serializer=bytes, response_deserializer=bytes)
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED

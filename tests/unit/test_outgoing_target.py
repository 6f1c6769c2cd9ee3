from ipaddress import ip_address

import pytest

from gpu_daemon.outgoing.target import AddressPolicy
from tests.addresses import LOOPBACK, NEVER, PRIVATE, PUBLIC, SPECIAL

DEFAULT = AddressPolicy.parse(("public", "private"))
WITH_LOOPBACK = AddressPolicy.parse(("public", "private", "loopback"))


@pytest.mark.parametrize("address", NEVER)
def test_link_local_metadata_and_multicast_are_never_reached(address: str) -> None:
    everything = AddressPolicy.parse(("public", "private", "loopback", "0.0.0.0/0", "::/0", "receiver"))
    assert not everything.allows(ip_address(address), "receiver")


@pytest.mark.parametrize("address", SPECIAL)
def test_special_addresses_need_a_network_of_their_own(address: str) -> None:
    assert not WITH_LOOPBACK.allows(ip_address(address), "receiver")


@pytest.mark.parametrize("address", LOOPBACK)
def test_loopback_in_any_disguise_must_be_asked_for(address: str) -> None:
    assert not DEFAULT.allows(ip_address(address), "localhost")
    assert WITH_LOOPBACK.allows(ip_address(address), "localhost")


@pytest.mark.parametrize("address", PRIVATE)
def test_one_s_own_network_can_be_shut(address: str) -> None:
    assert DEFAULT.allows(ip_address(address), "receiver")
    assert not AddressPolicy.parse(("public",)).allows(ip_address(address), "receiver")


@pytest.mark.parametrize("address", PUBLIC)
def test_the_internet_can_be_shut(address: str) -> None:
    assert DEFAULT.allows(ip_address(address), "receiver")
    assert not AddressPolicy.parse(("private", "loopback")).allows(ip_address(address), "receiver")


def test_networks_and_hosts_open_what_the_kinds_do_not() -> None:
    policy = AddressPolicy.parse(("100.64.0.0/10", "Receiver.Example."))
    assert policy.allows(ip_address("100.64.3.4"), "other")
    assert not policy.allows(ip_address("8.8.8.8"), "other")
    assert policy.allows(ip_address("127.0.0.1"), "receiver.example")
    assert not policy.allows(ip_address("169.254.169.254"), "receiver.example")


@pytest.mark.parametrize("entry", ["10.0.0.0/40", "10.0.0.1/8", "what ever", "http://x"])
def test_a_wrong_entry_is_named(entry: str) -> None:
    with pytest.raises(ValueError, match=entry.split("/")[0]):
        AddressPolicy.parse((entry,))

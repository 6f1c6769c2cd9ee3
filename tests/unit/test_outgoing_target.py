from ipaddress import ip_address

import pytest

from gpu_daemon.outgoing.target import AddressPolicy

DEFAULT = AddressPolicy.parse(("public", "private"))
WITH_LOOPBACK = AddressPolicy.parse(("public", "private", "loopback"))

NEVER = (
    "169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fe80::1", "fd00:ec2::254", "100.100.100.200",
    "192.0.0.192", "2002:a9fe:a9fe::", "224.0.0.1", "ff02::1", "0.0.0.0", "::", "255.255.255.255",
)  # fmt: skip
# They stand for another address, or are kept for documentation and tests; `ipaddress` takes some for public.
SPECIAL = (
    "100.64.0.1", "192.0.2.1", "192.88.99.1", "198.18.0.1", "203.0.113.9", "240.0.0.1", "2001:db8::1",
    "64:ff9b:1::7f00:1", "64:ff9b::808:808", "2002:808:808::", "::ffff:8.8.8.8", "::8.8.8.8", "2001:0:808:808::1",
)  # fmt: skip
LOOPBACK = ("127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "::127.0.0.1")
PRIVATE = ("10.1.2.3", "172.16.0.1", "192.168.7.7", "fd12:3456::1", "::ffff:10.0.0.1")
PUBLIC = ("8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700::1111")


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

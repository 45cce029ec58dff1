"""The interface that leads to another machine."""

import socket

import psutil
import pytest

from gemma_ft.launching import interface


def test_the_loopback_interface_leads_to_this_machine():
    name = interface.find_interface("127.0.0.1")
    assert "127.0.0.1" in {entry.address for entry in psutil.net_if_addrs()[name]}


def test_a_name_that_is_no_host_is_waited_for_and_then_told(monkeypatch, capsys):
    naps = []
    monkeypatch.setattr(interface, "_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(interface.time, "sleep", naps.append)
    clock = iter([0.0, 0.0, 1.0])
    monkeypatch.setattr(interface.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(interface.socket, "getaddrinfo", _unknown)
    assert interface.main("node-0-0.run") == 1
    assert naps == [2.0]
    assert "error: node-0-0.run has no address (Name or service not known)." in capsys.readouterr().err


def _unknown(*words, **options):
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_an_address_that_no_interface_holds_is_told(monkeypatch, capsys):
    monkeypatch.setattr(interface.psutil, "net_if_addrs", dict)
    with pytest.raises(
        OSError, match=r"no interface holds 127\.0\.0\.1, the address of this machine towards"
    ):
        interface.find_interface("127.0.0.1")
    assert interface.main("127.0.0.1") == 1
    assert "Set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME." in capsys.readouterr().err
    assert capsys.readouterr().out == ""


def test_the_name_is_all_that_is_printed(capsys):
    assert interface.main("127.0.0.1") == 0
    assert capsys.readouterr().out == interface.find_interface("127.0.0.1") + "\n"

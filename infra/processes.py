"""Finds free ports, finds and ends the processes of a service and no others, and checks where they listen."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import time
from collections.abc import Iterable

import psutil

from infra.state import Service, StackError, State

MARK = "HST_STACK_MARK"
"""Environment variable with the stack and service to which a process belongs."""


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def choose_port(variable: str, usual: int) -> int:
    """The port in the environment variable, else the usual port if it is free, else a free port."""
    wanted = os.environ.get(variable)
    if not wanted:
        return usual if is_free(usual) else free_port()
    if not wanted.isdigit() or not 1024 <= int(wanted) <= 65535:
        raise StackError(f"{variable} is {wanted!r}: expected a port, 1024 to 65535")
    if not is_free(int(wanted)):
        raise StackError(f"port {wanted} ({variable}) is taken: unset {variable} to use any free port")
    return int(wanted)


def is_alive(process: psutil.Process) -> bool:
    """Whether the process runs and is no zombie: the first process of a container may never reap zombies."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def head_process(service: Service) -> psutil.Process | None:
    """The service's head process, if it still runs; None if another process has its pid now."""
    try:
        process = psutil.Process(service.pid)
        own = abs(process.create_time() - service.create_time) < 0.01
    except psutil.NoSuchProcess:
        return None
    return process if own and is_alive(process) else None


def processes_of(state: State, service: Service) -> set[psutil.Process]:
    """Every live process of the service: the head and its descendants, and orphans with its mark.

    Both ways are needed. A Ray worker changes its title, which overwrites the environment that others see. The driver
    of a job runs in its own session and outlives a killed raylet.
    """
    head = head_process(service)
    found = {head, *descendants(head)} if head is not None else set()
    mark = state.mark(service.name)
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found |= {process, *descendants(process)}
        except (psutil.Error, OSError):  # another user's process, or one that has just ended
            continue
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return {process for process in found if process.pid not in own and is_alive(process)}


def descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def end(state: State, service: Service, *, patience: float = 3.0, keep_files: bool = False) -> int:
    """Ends the service's processes by pid: first terminates the head, then the rest, then kills those that remain.

    Args:
        patience: Seconds to wait in each of the three steps.
        keep_files: Keep Ray's session folder, for its logs.

    Returns:
        Number of processes at the beginning.

    Raises:
        StackError: Some processes do not end even when killed.
    """
    processes = processes_of(state, service)
    count = len(processes)
    head = head_process(service)
    if head is not None:
        signal_all([head], kill=False)  # `ray start --block` and MLflow end their own children in order
        wait_for_end(processes, patience)
    for kill in (False, True):
        processes |= processes_of(state, service)  # adds those started in the meantime
        signal_all(processes, kill=kill)
        wait_for_end(processes, patience)
    remaining = sorted(process.pid for process in processes if is_alive(process))
    if remaining:
        raise StackError(f"{service.name}: processes {remaining} do not end; {state.root} is left as it is")
    if service.temp_dir and not keep_files:
        shutil.rmtree(service.temp_dir, ignore_errors=True)
    return count


def signal_all(processes: Iterable[psutil.Process], *, kill: bool) -> None:
    for process in processes:
        try:
            # psutil checks that the pid still belongs to the same process.
            process.kill() if kill else process.terminate()
        except psutil.NoSuchProcess:
            continue


def wait_for_end(processes: Iterable[psutil.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(is_alive(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)


def open_to_others(processes: Iterable[psutil.Process]) -> list[str]:
    """``address:port (process)`` of each TCP socket on which these processes listen beyond loopback."""
    found = []
    for process in processes:
        try:
            connections, name = process.net_connections(kind="tcp"), process.name()
        except psutil.NoSuchProcess:
            continue
        for connection in connections:
            if connection.status != psutil.CONN_LISTEN:
                continue
            address = ipaddress.ip_address(connection.laddr.ip)
            if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
                address = address.ipv4_mapped
            if not address.is_loopback:
                found.append(f"{connection.laddr.ip}:{connection.laddr.port} ({name}, pid {process.pid})")
    return sorted(found)

"""A headless Chromium, told what to do over a pipe in the DevTools protocol; nothing to install."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest


def need_chromium() -> str:
    """Chromium's path; the test is skipped where there is none."""
    for name in ('chromium', 'chromium-browser', 'google-chrome', 'chrome'):
        if path := shutil.which(name):
            return path
    pytest.skip('no chromium (Debian: apt-get install chromium)')


class Page:
    """A page in a browser of its own; close it."""

    def __init__(self, url: str, *flags: str) -> None:
        down, up = os.pipe(), os.pipe()

        def pipes() -> None:  # the browser reads from 3 and writes to 4
            reading, writing = os.dup(down[0]), os.dup(up[1])
            os.dup2(reading, 3)
            os.dup2(writing, 4)

        self.browser = subprocess.Popen(
            [need_chromium(), '--headless', '--no-sandbox', '--remote-debugging-pipe',
             '--no-first-run', '--disable-background-networking', *flags, 'about:blank'],
            preexec_fn=pipes, close_fds=False, stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(down[0])
        os.close(up[1])
        self.writing, self.reading = os.fdopen(down[1], 'wb', 0), os.fdopen(up[0], 'rb')
        self.serial = itertools.count(1)
        self.session: dict[str, str] = {}
        self.said: list[str] = []
        target = self.call('Target.createTarget', url='about:blank', width=1280, height=800)
        found = self.call('Target.attachToTarget', targetId=target['targetId'], flatten=True)
        self.session = {'sessionId': found['sessionId']}
        for domain in ('Runtime', 'Page', 'DOM'):
            self.call(f'{domain}.enable')
        self.call('Page.navigate', url=url)

    def call(self, method: str, **params: Any) -> Any:
        number = next(self.serial)
        message = dict(id=number, method=method, params=params, **self.session)
        self.writing.write(json.dumps(message).encode() + b'\0')
        while True:
            answer = self._read()
            if answer.get('method') in ('Runtime.exceptionThrown', 'Runtime.consoleAPICalled'):
                self.said.append(json.dumps(answer['params'])[:2000])
            if answer.get('id') == number:
                assert 'error' not in answer, answer
                return answer['result']

    def _read(self) -> Any:
        parts = bytearray()
        while (byte := self.reading.read(1)) != b'\0':
            assert byte, 'chromium is gone'
            parts += byte
        return json.loads(parts)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        found = self.call(
            'Runtime.evaluate', expression=script, awaitPromise=True, returnByValue=True
        )
        assert 'exceptionDetails' not in found, found
        return found['result'].get('value')

    def choose(self, selector: str, *files: Path) -> None:
        """Give files to an input."""
        root = self.call('DOM.getDocument')['root']['nodeId']
        node = self.call('DOM.querySelector', nodeId=root, selector=selector)['nodeId']
        self.call('DOM.setFileInputFiles', nodeId=node, files=[str(file) for file in files])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call('Page.captureScreenshot')['data']))

    def close(self) -> None:
        self.browser.kill()
        self.browser.wait()
        self.writing.close()
        self.reading.close()

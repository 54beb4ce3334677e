"""A page in headless Chromium, driven over Chrome's DevTools protocol, for tests of pages.

The protocol runs over two pipes, so that nothing has to be installed beside Chromium itself.
"""

import base64
import json
import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

KEYS = dict(Enter='\r', Tab='\t')  # keys that also write a character
PATIENCE_S = 30  # until something that never happens is an error


class Browser:
    """One page of a browser of its own.

    Args:
        profile: folder of its files, empty.
    """

    def __init__(self, profile: Path):
        binary = shutil.which('chromium') or shutil.which('google-chrome')
        if binary is None:
            pytest.skip('needs Chromium: apt install chromium')
        read, self._out = os.pipe()  # what the browser reads
        self._in, write = os.pipe()
        flags = [
            '--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage',
            '--disable-extensions', '--no-first-run', '--no-proxy-server',
            '--remote-debugging-pipe', f'--user-data-dir={profile}', 'about:blank',
        ]  # fmt: skip
        # Chromium reads from 3 and writes to 4
        move = f'exec "$@" 3</dev/fd/{read} 4>/dev/fd/{write}'
        self._process = subprocess.Popen(
            ['sh', '-c', move, 'sh', binary, *flags],
            pass_fds=(read, write), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(read)
        os.close(write)
        self._session, self._number, self._rest = None, 0, b''
        self.events: list[dict] = []  # what the page said meanwhile: its log, its requests
        pages = self.call('Target.getTargets')['targetInfos']
        target = next(page['targetId'] for page in pages if page['type'] == 'page')
        attached = self.call('Target.attachToTarget', targetId=target, flatten=True)
        self._session = attached['sessionId']
        for domain in ('Page', 'Runtime', 'Network', 'Log', 'DOM'):
            self.call(f'{domain}.enable')

    def call(self, method: str, **parameters) -> dict:
        """Call a method of the protocol."""
        self._number += 1
        message = dict(id=self._number, method=method, params=parameters)
        if self._session:
            message['sessionId'] = self._session
        os.write(self._out, json.dumps(message).encode() + b'\0')
        while True:
            answer = self._receive()
            if answer.get('id') == self._number:
                assert 'error' not in answer, (method, answer['error'])
                return answer['result']
            self.events.append(answer)

    def _receive(self) -> dict:
        while b'\0' not in self._rest:
            read = os.read(self._in, 1 << 20)
            assert read, 'the browser has ended'
            self._rest += read
        message, _, self._rest = self._rest.partition(b'\0')
        return json.loads(message)

    def run(self, script: str):
        """The value of an expression in the page, plain JSON."""
        answer = self.call(
            'Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True
        )
        assert 'exceptionDetails' not in answer, answer.get('exceptionDetails')
        return answer['result'].get('value')

    def wait(self, script: str):
        """The value of an expression, once it is true."""
        end = time.monotonic() + PATIENCE_S
        while not (value := self.run(script)):
            assert time.monotonic() < end, f'never true: {script}'
            time.sleep(0.02)
        return value

    def open(self, url: str) -> None:
        """Go there, till it has loaded."""
        self.call('Page.navigate', url=url)
        self.wait('document.readyState === "complete"')

    def click(self, selector: str) -> None:
        """Click the middle of an element, as a mouse does: what lies over it gets the click."""
        place = self.run(
            f'(() => {{ const e = document.querySelector({json.dumps(selector)});'
            ' e.scrollIntoView({block: "center"}); const r = e.getBoundingClientRect();'
            ' return [r.x + r.width / 2, r.y + r.height / 2] })()'
        )
        for kind in ('mousePressed', 'mouseReleased'):
            self.call(
                'Input.dispatchMouseEvent', type=kind, x=place[0], y=place[1],
                button='left', clickCount=1,
            )  # fmt: skip

    def write(self, text: str) -> None:
        """Type into what has the focus."""
        self.call('Input.insertText', text=text)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other, by their names."""
        codes = dict(Enter=13, Tab=9, Escape=27, ArrowLeft=37, ArrowUp=38, ArrowRight=39)
        codes |= dict(ArrowDown=40)
        for key in keys:
            own = dict(key=key, code=key, windowsVirtualKeyCode=codes[key])
            text = dict(text=KEYS[key]) if key in KEYS else {}
            self.call('Input.dispatchKeyEvent', type='keyDown', **own, **text)
            self.call('Input.dispatchKeyEvent', type='keyUp', **own)

    def upload(self, selector: str, *files: Path) -> None:
        """Choose files in a file input."""
        root = self.call('DOM.getDocument')['root']['nodeId']
        node = self.call('DOM.querySelector', nodeId=root, selector=selector)['nodeId']
        self.call('DOM.setFileInputFiles', nodeId=node, files=[str(file) for file in files])

    def resize(self, width: int, height: int = 900, dark: bool = False) -> None:
        """Width and height of the page in pixels, and the colours its reader prefers."""
        self.call(
            'Emulation.setDeviceMetricsOverride', width=width, height=height,
            deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        value = 'dark' if dark else 'light'
        self.call(
            'Emulation.setEmulatedMedia', features=[dict(name='prefers-color-scheme', value=value)]
        )

    def screenshot(self, path: Path) -> None:
        """What is seen, as PNG."""
        path.write_bytes(base64.b64decode(self.call('Page.captureScreenshot')['data']))

    def close(self) -> None:
        """End the browser."""
        with suppress(AssertionError, BrokenPipeError):
            self._session = None
            self.call('Browser.close')
        os.close(self._out)
        os.close(self._in)
        self._process.wait()

"""Is this answer right? Cheap exact rules first, Math-Verify for the rest, always in bounded time.

A response is read after its thinking block; an unfinished block has no answer. The answer is the
content of the last `\\boxed{...}`. Differences to the authors' grader (Math-Verify on the whole
response): without a complete box there is no answer, and of several boxes the last one counts.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import sys

SECONDS = 5  # for one comparison by Math-Verify


def after_thinking(response: str) -> str | None:
    """The text after the thinking block; None if the block was never closed."""
    if "</think>" in response:
        return response.rsplit("</think>", 1)[1]
    return None if "<think>" in response else response


def boxed(text: str) -> str | None:
    """The content of the last complete `\\boxed{...}` (braces balanced), or None."""
    found, last = None, -1
    opened: list[int | None] = []  # for each open brace: where the content of its box starts
    for match in re.finditer(r"(\\boxed\s*)?\{|\}", text):
        if match[0] != "}":
            opened.append(match.end() if match[1] else None)
        elif opened and (start := opened.pop()) is not None and start > last:
            found, last = text[start : match.start()].strip(), start
    return found


def _integer(text: str) -> int | None:
    plain = text.strip().strip("$").strip()
    if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+", plain):
        plain = plain.replace(",", "")
    return int(plain) if re.fullmatch(r"[-+]?\d{1,99}", plain) else None


def _by_rule(given: str | None, answer: str) -> bool | None:
    """The verdict if the cheap rules can give one, else None."""
    if given is None or not given:
        return False
    if given == answer.strip():
        return True
    left, right = _integer(given), _integer(answer)
    return left == right if left is not None and right is not None else None


def _verify(connection, parents_end) -> None:
    # Math-Verify's own time-outs are signals of the main thread: here we are on one.
    from math_verify import parse, verify

    parents_end.close()  # or a parent that was killed would never be noticed

    while True:
        try:
            given, answer = connection.recv()
        except EOFError:
            return
        try:
            gold = parse(f"\\boxed{{{answer}}}", parsing_timeout=SECONDS)
            guess = parse(f"\\boxed{{{given}}}", parsing_timeout=SECONDS)
            connection.send(bool(verify(gold, guess, timeout_seconds=SECONDS)))
        except Exception:  # whatever a model wrote that breaks the parser is not an answer
            connection.send(False)


class _Verifier:
    """One helper process for Math-Verify; it is killed, and later replaced, if it overruns."""

    def __init__(self):
        self.process, self.owner = None, None

    def __call__(self, given: str, answer: str) -> bool:
        forked = self.owner != os.getpid()  # then the helper belongs to our parent
        if self.process is None or forked or not self.process.is_alive():
            self.owner = os.getpid()
            method = "fork" if sys.platform == "linux" else "spawn"
            context = multiprocessing.get_context(method)
            self.connection, theirs = context.Pipe()
            self.process = context.Process(
                target=_verify, args=(theirs, self.connection), daemon=True
            )
            self.process.start()
            theirs.close()
        try:
            self.connection.send((given, answer))
            if self.connection.poll(3 * SECONDS + 1):
                return self.connection.recv()
        except (EOFError, OSError):
            pass  # it died on this answer
        self.process.kill()
        self.process.join()
        self.process = None
        return False


_verifier = _Verifier()


def is_correct(response: str, answer: str) -> bool:
    """Does the response's final boxed answer equal the reference answer? Takes bounded time."""
    text = after_thinking(response)
    given = None if text is None else boxed(text)
    verdict = _by_rule(given, answer)
    return _verifier(given, answer) if verdict is None else verdict

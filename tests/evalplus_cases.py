"""Stand-ins for tasks of HumanEval+ and MBPP+ in EvalPlus's format, solutions that are right and
subtly wrong, and what evalplus 0.3.1 says of each (an installed one is asked again by
test_tasks_code.py). Tasks with an oracle of their own keep the names by which EvalPlus knows them;
the rest is ours.
"""

from typing import NamedTuple


class Task(NamedTuple):
    suite: str
    task_id: str
    entry: str
    prompt: str
    canonical: str
    base: list
    plus: list
    atol: float
    solutions: list  # (evalplus's verdict, program)
    differs: tuple = ()  # numbers of the solutions on which we decide otherwise, on purpose

    def row(self) -> dict:
        """As a line of EvalPlus's file."""
        return {
            "task_id": self.task_id, "prompt": self.prompt, "entry_point": self.entry,
            "canonical_solution": self.canonical, "contract": "", "base_input": self.base,
            "plus_input": self.plus, "atol": self.atol,
        }  # fmt: skip


def humaneval(number, entry, signature, canonical, base, plus, atol, solutions, differs=()):
    prompt = f'from typing import List\n\n\ndef {entry}({signature}):\n    """Task {number}."""\n'
    name = f"HumanEval/{number}"
    return Task("humaneval", name, entry, prompt, canonical, base, plus, atol, solutions, differs)


def mbpp(number, entry, canonical, base, plus, atol, solutions, differs=()):
    prompt = f'"""\nTask {number}.\n"""\n'
    name = f"Mbpp/{number}"
    return Task("mbpp", name, entry, prompt, canonical, base, plus, atol, solutions, differs)


TASKS = [
    humaneval(
        9000, "squares", "xs: List[int]", "    return [x * x for x in xs]\n",
        [[[1, 2]], [[]]], [[[-3]], [[10**20]], [[0, 0]]], 0,
        [
            ("pass", "def squares(xs): return [x ** 2 for x in xs]"),
            ("pass", "import numpy as np\ndef squares(xs): return [int(x) * x for x in xs]"),
            ("fail", "def squares(xs): return tuple(x * x for x in xs)"),
            ("fail", "def squares(xs): return (x * x for x in xs)"),
            ("fail", "def squares(xs): return [abs(x) * x for x in xs]"),  # wrong in plus alone
            ("fail", "def squares(xs): return [x * x for x in xs] or None"),  # and in base
            ("fail", "def squares(xs): return [x * x for x in xs] + [0]"),
            ("pass", "def squares(xs): return list(map(lambda x: x * x, xs))\nprint('noise')"),
            ("fail", "def squares(xs: Listt[int]): return [x * x for x in xs]"),
            ("fail", "def squared(xs): return [x * x for x in xs]"),
            ("fail", "import sys\nsys.exit()\ndef squares(xs): return [x * x for x in xs]"),
            ("pass", "def squares(xs): return [x * x for x in xs]\nif __name__ == '__main__':\n"
                     "    raise ValueError"),
            ("pass", "class L(list): pass\ndef squares(xs): return L(x * x for x in xs)"),
        ],
    ),
    humaneval(
        9001, "mean", "xs: List[float]", "    return sum(xs) / len(xs)\n",
        [[[1.0, 2.0]]], [[[0.1, 0.2, 0.3]], [[1e9, 1.0]], [[-1.5]]], 1e-6,
        [
            ("pass", "import statistics\ndef mean(xs): return statistics.fmean(xs)"),
            ("pass", "def mean(xs): return sum(x / len(xs) for x in xs)"),
            ("pass", "def mean(xs): return sum(xs) / len(xs) + 1e-8"),
            ("fail", "def mean(xs): return sum(xs) / len(xs) + 1e-4"),
            ("fail", "def mean(xs): return round(sum(xs) / len(xs))"),
            ("fail", "def mean(xs): return str(sum(xs) / len(xs))"),
            ("fail", "def mean(xs): return [sum(xs) / len(xs) + 1e-9]"),
            ("fail", "def mean(xs): return float('nan')"),
            ("fail", "from decimal import Decimal\n"
                     "def mean(xs): return Decimal(sum(xs)) / len(xs) + Decimal('1e-9')"),
            ("fail", "import numpy as np\ndef mean(xs): return np.mean(xs) + 1e-9"),  # its type
        ],
        differs=(9,),
    ),
    humaneval(
        9002, "halves", "xs: List[int]", "    return [x / 2 for x in xs]\n",
        [[[1, 2]]], [[[]], [[3]]], 0,
        [
            ("pass", "def halves(xs): return [x * 0.5 for x in xs]"),
            ("pass", "def halves(xs): return [x / 2 + 1e-9 for x in xs]"),
            ("fail", "def halves(xs): return [x / 2 + 1e-5 for x in xs]"),
            ("fail", "def halves(xs): return [x // 2 for x in xs]"),
            ("pass", "def halves(xs): return [x // 2 if x % 2 == 0 else x / 2 for x in xs]"),
            ("fail", "def halves(xs): return tuple(x / 2 + 1e-9 for x in xs)"),
            ("fail", "def halves(xs): return [x / 2 for x in xs] + [0.0]"),
            ("fail", "def halves(xs): return [[x / 2 for x in xs]]"),
        ],
    ),
    humaneval(
        9003, "float_or_list", "n: int", "    return 0.5 if n == 0 else [n]\n",
        [[0], [1]], [[1], [2]], 0,
        [  # a float among what is expected makes the rest of its list tolerant
            ("pass", "def float_or_list(n): return 0.5 if n == 0 else [n]"),
            ("fail", "def float_or_list(n): return 0.5 if n == 0 else [n + 1e-9]"),
            ("fail", "def float_or_list(n): return [0.5, [1], [2 + 1e-9]][n]"),
            ("fail", "def float_or_list(n): return 0.5 if n == 0 else n"),
        ],
    ),
    humaneval(
        9004, "table", "n: int", "    return {str(i): (i, [i]) for i in range(n)}\n",
        [[2]], [[0], [3]], 0,
        [
            ("pass", "def table(n): return {f'{i}': (i, [i]) for i in reversed(range(n))}"),
            ("fail", "def table(n): return {i: (i, [i]) for i in range(n)}"),
            ("fail", "def table(n): return {str(i): [i, [i]] for i in range(n)}"),
            ("pass", "from collections import OrderedDict as O\n"
                     "def table(n): return O((str(i), (i, [i])) for i in range(n))"),
            ("pass", "from collections import Counter\ndef table(n):\n    d = Counter()\n"
                     "    d.update({str(i): (i, [i]) for i in range(n)})\n    return d"),
            ("pass", "def table(n): return {str(i): (float(i), [True * i]) for i in range(n)}"),
        ],
    ),
    humaneval(
        9005, "is_even", "n: int", "    return n % 2 == 0\n", [[1], [2]], [[0], [-1]], 0,
        [
            ("pass", "def is_even(n): return not n & 1"),
            ("pass", "def is_even(n): return 1 - n % 2"),
            ("fail", "def is_even(n): return 'yes' if n % 2 == 0 else ''"),
            ("fail", "def is_even(n): return n % 2"),
            ("fail", "def is_even(n): return n > 0 and n % 2 == 0"),
            ("fail", "def is_even(n):\n    if n == -1: raise ValueError\n    return n % 2 == 0"),
            ("fail", "def is_even(n, m): return n % 2 == 0"),
            ("fail", "def is_even(n):\n    print(n % 2 == 0)"),
            ("fail", "def is_even(n):\n    while n == -1: pass\n    return n % 2 == 0"),
            ("fail", "import os\ndef is_even(n): os._exit(0)"),
            ("pass", "class Yes:\n    def __eq__(self, other): return True\n"
                     "def is_even(n): return Yes()"),  # it is fooled
        ],
        differs=(10,),
    ),
    humaneval(
        32, "find_zero", "xs: list", "    return -xs[0] / xs[1]\n", [[[1, 2]]], [[[-6, 3]]], 1e-4,
        [  # it fails whatever is given: an input that passes is not counted
            ("fail", "def find_zero(xs): return -xs[0] / xs[1]"),
            ("fail", "def find_zero(xs): return -xs[0] / xs[1] + 1e-6"),
            ("fail", "def find_zero(xs): return -xs[0] / xs[1] + 1e-2"),
            ("fail", "def find_zero(xs): return None"),
        ],
        differs=(0, 1),
    ),
    mbpp(
        9100, "pair", "def pair(a, b): return (a, b)\n", [[1, 2]], [["x", None]], 0,
        [
            ("pass", "def pair(*args): return args"),
            ("fail", "def pair(a, b): return [a, b]"),
            ("pass", "from collections import namedtuple\nP = namedtuple('P', 'a b')\n"
                     "def pair(a, b): return P(a, b)"),
            ("fail", "def pair(a, b): return {a, b}"),
        ],
    ),
    mbpp(
        164, "are_equivalent", "def are_equivalent(a, b): return a == b\n", [[1, 2]], [[3, 3]], 0,
        [
            ("pass", "def are_equivalent(a, b): return True"),
            ("pass", "def are_equivalent(a, b): return 'what?'"),
            ("fail", "def are_equivalent(a, b): return 1 / 0"),
        ],
    ),
    mbpp(
        295, "sum_div",
        "def sum_div(n): return sum(i for i in range(1, n) if n % i == 0)\n", [[8]], [[12]], 0,
        [
            ("pass", "def sum_div(n): return sum(i for i in range(1, n // 2 + 1) if n % i == 0)"),
            ("pass", "def sum_div(n): return 0"),
            ("fail", "def sum_div(n): return sum(i for i in range(1, n + 1) if n % i == 0)"),
        ],
    ),
    mbpp(
        581, "surface_Area", "def surface_Area(b, s): return 2 * b * s + b * b\n",
        [[3, 4]], [[4, 5], [1, 2]], 0,
        [
            ("pass", "def surface_Area(b, s): return b * (b + 2 * s)"),
            ("pass", "import math\ndef surface_Area(b, h):\n"
                     "    return round(b * b + 2 * b * math.sqrt(b * b / 4 + h * h))"),
            ("fail", "import math\ndef surface_Area(b, h):\n"
                     "    return b * b + 2 * b * math.sqrt(b * b / 4 + h * h)"),
            ("fail", "def surface_Area(b, s): return 2 * b * s"),
        ],
    ),
    mbpp(
        558, "digit_distance_nums",
        "def digit_distance_nums(a, b): return sum(map(int, str(abs(a - b))))\n",
        [[1, 2]], [[23, 56], [123, 25]], 0,
        [
            ("pass", "def digit_distance_nums(a, b): return sum(map(int, str(abs(a - b))))"),
            ("pass", "def digit_distance_nums(a, b):\n    w = max(len(str(a)), len(str(b)))\n"
                     "    pairs = zip(str(a).zfill(w), str(b).zfill(w))\n"
                     "    return sum(abs(int(x) - int(y)) for x, y in pairs)"),
            ("fail", "def digit_distance_nums(a, b):\n"
                     "    return sum(abs(int(x) - int(y)) for x, y in zip(str(a), str(b)))"),
        ],
    ),
    mbpp(
        2, "similar_elements", "def similar_elements(a, b): return tuple(set(a) & set(b))\n",
        [[[3, 4, 5], [5, 4]]], [[[1], [2]], [[7, 7], [7]]], 0,
        [  # its arguments are tuples, its results sets
            ("pass", "def similar_elements(a, b): return [x for x in a if x in b]"),
            ("pass", "def similar_elements(a, b): return set(a) & set(b)"),
            ("pass", "def similar_elements(a, b):\n    assert type(a) is tuple is type(b)\n"
                     "    return sorted(set(a) & set(b), reverse=True)"),
            ("fail", "def similar_elements(a, b): return a + b"),
            ("fail", "def similar_elements(a, b): return [[x] for x in a if x in b]"),
            ("fail", "def similar_elements(a, b): return None"),
            ("pass", "def similar_elements(a, b): return (x for x in a if x in b)"),
        ],
    ),
    mbpp(
        794, "text_starta_endb",
        "import re\ndef text_starta_endb(text): return re.search('a.*?b$', text)\n",
        [["aabbb"], ["aabAbbbc"]], [["accddbbjjj"], ["ab"]], 0,
        [  # is there a result or none
            ("pass", "import re\ndef text_starta_endb(text): return re.search('a.*?b$', text)"),
            ("pass", "def text_starta_endb(text): return text[:1] == 'a' and text[-1:] == 'b'"),
            ("fail", "import re\ndef text_starta_endb(text): return re.search('a.*?b', text)"),
            ("fail", "def text_starta_endb(text): return 1"),
            ("pass", "def text_starta_endb(text):\n"
                     "    return 'Matched!' if text[0] == 'a' and text[-1] == 'b' else None"),
            ("fail", "def text_starta_endb(text):\n"
                     "    return 'Matched!' if text[0] == 'a' and text[-1] == 'b' else 'No'"),
        ],
    ),
    mbpp(
        252, "polar", "import cmath\ndef polar(z): return cmath.polar(z)\n",
        [["1"]], [["4+7j"], ["0j"]], 0,
        [
            ("pass", "import cmath\ndef polar(z): return (abs(z), cmath.phase(z))"),
            ("fail", "import cmath\ndef polar(z): return [abs(z), cmath.phase(z) + 1e-9]"),
            ("pass", "import cmath\ndef polar(z): return (abs(z), cmath.phase(z) + 1e-9)"),
            ("fail", "def polar(z): return (abs(z), 0.0)"),
        ],
    ),
]  # fmt: skip


def by_evalplus(task: Task, program: str) -> str:
    """What the installed evalplus says of the program, base and plus together."""
    from evalplus.data.mbpp import mbpp_deserialize_inputs
    from evalplus.eval import untrusted_check
    from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS
    from evalplus.gen.util import trusted_exec

    for inputs in (task.base, task.plus):
        if task.suite == "mbpp":
            inputs = mbpp_deserialize_inputs(task.task_id, inputs)
        not_none = task.suite == "mbpp" and task.entry in MBPP_OUTPUT_NOT_NONE_TASKS
        code = task.prompt + task.canonical
        want, times = trusted_exec(code, inputs, task.entry, True, not_none)
        ask = (task.suite, program, inputs, task.entry, want, task.atol, times, True)
        if untrusted_check(*ask)[0] != "pass":
            return "fail"
    return "pass"

# SPDX-License-Identifier: MIT-0
"""What char_rnn.py promises, each test one claim:  python -m unittest test_char_rnn

python test_char_rnn.py --speed            prints its training speed beside torch, if installed.
python test_char_rnn.py --look inside.png  prints and draws README's "A look inside".
"""

import contextlib
import copy
import io
import json
import math
import os
import pickle
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import types
import unittest
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as the script does, which comes after NumPy here

import numpy as np

import char_rnn
from char_rnn import (
    OPTIMIZERS,
    RNN,
    DataReader,
    Run,
    UserError,
    check_gradients,
    counting,
    encode,
    load_checkpoint,
    save_checkpoint,
    schedule,
    softmax,
    sum_outer,
)

if find_spec("torch"):
    import torch

HERE = Path(__file__).resolve().parent
SCRIPT = str(HERE / "char_rnn.py")
FABLES = str(HERE / "data" / "fables.txt")
SHORT = Path(FABLES).read_text(encoding="utf-8")[:3000]
SMALL = ["--hidden-size=16", "--seq-length=8", "--batch-size=4"]  # a model that trains in a blink
CATS = "cats purr " * 900 + "0123456789" * 100  # whose end is unlike the rest


def silent(run):
    """A report that prints nothing."""


def stop_at_130(run):
    """A report that ends a run early, as Ctrl-C does."""
    if run.iteration == 130:
        raise KeyboardInterrupt


class InTorch:
    """The same network of torch modules: its parameters by our names, and its loss."""

    def __init__(self, rnn):
        H, V = rnn.hidden_size, rnn.vocab_size
        self.dtype = getattr(torch, rnn.dtype)
        self.hidden = torch.nn.RNN(V, H, dtype=self.dtype)
        self.out = torch.nn.Linear(H, V, dtype=self.dtype)
        torch.nn.init.zeros_(self.hidden.bias_hh_l0)
        self.places = {
            "Wax": self.hidden.weight_ih_l0,
            "Waa": self.hidden.weight_hh_l0,
            "Wya": self.out.weight,
            "ba": self.hidden.bias_ih_l0,
            "by": self.out.bias,
        }
        for name, place in self.places.items():
            place.data = torch.tensor(getattr(rnn, name))
        self.optimiser = torch.optim.Adam(self.places.values(), lr=rnn.learning_rate)

    def loss(self, inputs, a_prev, targets):
        x = torch.nn.functional.one_hot(torch.tensor(inputs), self.out.out_features)
        a, _ = self.hidden(x.to(self.dtype), torch.as_tensor(a_prev)[None])
        z = self.out(a).flatten(0, 1)
        targets = torch.tensor(targets).flatten()
        return torch.nn.functional.cross_entropy(z, targets, reduction="sum") / a.shape[1], a

    def step(self, a_prev, inputs, targets):
        loss, a = self.loss(inputs, a_prev, targets)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_value_(self.places.values(), 5)
        self.optimiser.step()
        loss.item()
        return a[-1].detach()


def sigmoid(n):
    return 1 / (1 + np.exp(-n))


class GRU(RNN):
    """README's exercise (Cho and others, 2014), with streams or a single sequence:

    r_t = sigmoid(Wra a_{t-1} + Wrx x_t + br)           what to keep of the state in the candidate
    u_t = sigmoid(Wua a_{t-1} + Wux x_t + bu)           what to keep of the state as it is
    c_t = tanh(Waa (r_t a_{t-1}) + Wax x_t + ba)        a_t = u_t a_{t-1} + (1 - u_t) c_t
    """

    def __init__(self, hidden_size, vocab_size, *args, **options):
        super().__init__(hidden_size, vocab_size, *args, **options)
        for gate, seed in (("r", 1), ("u", 2)):
            other = RNN(hidden_size, vocab_size, *args, **options | {"seed": seed})
            setattr(self, f"W{gate}x", other.Wax)
            setattr(self, f"W{gate}a", other.Waa)
            setattr(self, f"b{gate}", other.ba)

    def parameters(self):
        names = ("Wrx", "Wra", "br", "Wux", "Wua", "bu")
        return super().parameters() | {name: getattr(self, name) for name in names}

    def gates(self, x, a_prev):
        r = sigmoid(self.Wrx.T[x] + a_prev @ self.Wra.T + self.br)
        u = sigmoid(self.Wux.T[x] + a_prev @ self.Wua.T + self.bu)
        c = np.tanh(self.Wax.T[x] + (r * a_prev) @ self.Waa.T + self.ba)
        return r, u, c

    def forward(self, inputs, a_prev):
        a = [np.asarray(a_prev, self.dtype)]
        for x in inputs:
            _, u, c = self.gates(x, a[-1])
            a.append(u * a[-1] + (1 - u) * c)
        return np.array(a), softmax(self.logits(np.array(a[1:])))

    def backward(self, inputs, a, y_pred, targets):
        dz = (y_pred - self.one_hot(targets)) / np.size(targets[0])
        from_z = dz @ self.Wya
        from_next = 0
        dr, du, dc, kept = np.empty((4, *from_z.shape))  # d of what goes into r, u and c
        for t in reversed(range(len(inputs))):
            r, u, c = self.gates(inputs[t], a[t])
            kept[t] = r * a[t]
            da = from_z[t] + from_next
            dc[t] = da * (1 - u) * (1 - c**2)
            du[t] = da * (a[t] - c) * u * (1 - u)
            dr[t] = dc[t] @ self.Waa * a[t] * r * (1 - r)
            from_next = da * u + dc[t] @ self.Waa * r + du[t] @ self.Wua + dr[t] @ self.Wra
        grads = {"Wya": sum_outer(dz, a[1:]), "by": sum_outer(dz, np.ones_like(dz))[:, 0]}
        for gate, d, state in (("a", dc, kept), ("r", dr, a[:-1]), ("u", du, a[:-1])):
            grads[f"W{gate}x"] = sum_outer(d, self.one_hot(inputs))
            grads[f"W{gate}a"] = sum_outer(d, state)
            grads[f"b{gate}"] = d.reshape(-1, self.hidden_size).sum(axis=0)
        return grads


class LSTM(RNN):
    """README's exercise (Hochreiter and Schmidhuber, 1997): the state is a_t and a cell c_t.

    i, f, o = sigmoid(their rows of n_t)    g = tanh(its rows)    n_t = Wa a_{t-1} + Wx x_t + b
    c_t = f c_{t-1} + i g                   a_t = o tanh(c_t)
    """

    def __init__(self, hidden_size, vocab_size, *args, **options):
        super().__init__(hidden_size, vocab_size, *args, **options)
        rng = np.random.default_rng(1)
        self.Wx = rng.normal(size=(4 * hidden_size, vocab_size)).astype(self.dtype)
        self.Wa = rng.normal(size=(4 * hidden_size, hidden_size)).astype(self.dtype)
        self.b = np.zeros(4 * hidden_size, self.dtype)

    @property
    def state_size(self):
        return 2 * self.hidden_size  # a and c, side by side

    def parameters(self):
        return {name: getattr(self, name) for name in ("Wx", "Wa", "b", "Wya", "by")}

    def logits(self, a):
        return super().logits(a[..., : self.hidden_size])

    def gates(self, x, a_prev):
        i, f, o, g = np.split(self.Wx.T[x] + a_prev @ self.Wa.T + self.b, 4, axis=-1)
        return sigmoid(i), sigmoid(f), sigmoid(o), np.tanh(g)

    def forward(self, inputs, a_prev):
        states = [np.asarray(a_prev, self.dtype)]
        for x in inputs:
            a, c = np.split(states[-1], 2, axis=-1)
            i, f, o, g = self.gates(x, a)
            c = f * c + i * g
            states.append(np.concatenate([o * np.tanh(c), c], axis=-1))
        return np.array(states), softmax(self.logits(np.array(states[1:])))

    def backward(self, inputs, a, y_pred, targets):
        a, c = np.split(a, 2, axis=-1)
        dz = (y_pred - self.one_hot(targets)) / np.size(targets[0])
        from_z = dz @ self.Wya
        a_next = c_next = 0  # what comes back from the step after
        dn = np.empty((*from_z.shape[:-1], 4 * self.hidden_size))
        for t in reversed(range(len(inputs))):
            i, f, o, g = self.gates(inputs[t], a[t])
            tanh = np.tanh(c[t + 1])
            da = from_z[t] + a_next
            dc = da * o * (1 - tanh**2) + c_next
            parts = [dc * g * i * (1 - i), dc * c[t] * f * (1 - f)]
            parts += [da * tanh * o * (1 - o), dc * i * (1 - g**2)]
            dn[t] = np.concatenate(parts, axis=-1)
            a_next = dn[t] @ self.Wa
            c_next = dc * f
        grads = {"Wx": sum_outer(dn, self.one_hot(inputs)), "Wa": sum_outer(dn, a[:-1])}
        grads |= {"Wya": sum_outer(dz, a[1:]), "b": dn.reshape(-1, dn.shape[-1]).sum(axis=0)}
        return grads | {"by": dz.reshape(-1, self.vocab_size).sum(axis=0)}


class InFolder(unittest.TestCase):
    """A folder for each test, and the command line in this process (main) or its own (real)."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder.name)
        # However the tests are started, output is buffered and Ctrl-C is what it is at a prompt.
        environment = mock.patch.dict(os.environ)
        environment.start()
        self.addCleanup(environment.stop)
        os.environ.pop("PYTHONUNBUFFERED", None)
        self.addCleanup(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.rng = np.random.default_rng(1)
        self.write("text.txt", SHORT)
        self.flags = ["train", "text.txt", *SMALL]

    def write(self, name, content):
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    def reader(self, text, *args, **options):
        return DataReader(self.write("text.txt", text), *args, **options)

    def files(self):
        return {str(path): path.read_bytes() for path in Path().iterdir() if path.is_file()}

    def main(self, *args):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = char_rnn.main(args) or 0
            except SystemExit as end:
                status = end.code
        return status, out.getvalue(), err.getvalue()

    def start(self, *args, script=(SCRIPT,), **options):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, *script, *args]
        process = subprocess.Popen(command, **pipes | options, encoding="utf-8")
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def started(self, *args, row):
        """A real process that has printed the row of an iteration."""
        process = self.start(*args)
        next(line for line in process.stdout if line.split()[:1] == [row])
        return process

    def real(self, *args, given=None, **options):
        process = self.start(*args, **options)
        out, err = process.communicate(given)
        return process.returncode, out, err

    def succeed(self, *args, told=""):
        status, out, err = self.main(*args)
        self.assertEqual((status, err), (0, told))
        return out

    def train(self, *args):
        return self.succeed(*self.flags, *args)

    def refuse(self, saying, *args):
        """The command ends with status 2 and one line that says why, and changes no file."""
        before = self.files()
        status, out, err = self.main(*args)
        self.assertEqual((status, out, self.files()), (2, "", before), (args, err))
        self.assertRegex(err, r"\A(usage: .*\n( .*\n)*)?char_rnn.py( \w+)?: error: .*\n\Z")
        self.assertIn(saying, err.splitlines()[-1])

    def contents(self, path):
        """All that a checkpoint holds, as bytes, but for its path and the time that it took."""
        rnn, run, about = load_checkpoint(path)
        run.seconds = about.path = None
        return pickle.dumps((vars(rnn), vars(run), vars(about)))

    def overfitted(self):
        """Train until the last weights are not the best; both, and what is known of the text."""
        flags = ["--hidden-size=64", "--learning-rate=0.02", "--max-iters=500"]
        self.train(*flags, "--val-fraction=0.5")
        best, run, about = load_checkpoint("char_rnn.npz")
        last = copy.deepcopy(best)
        best.use(run.best)
        self.assertTrue(0 < run.best_iteration < 500)
        return best, last, about

    def problem(self, H=5, V=7, T=6, B=3, kind=RNN):
        """A float64 model with no zero anywhere, a batch, and a hidden state to start from."""
        rnn = kind(H, V, T, 0.01, dtype=np.float64, seed=2)
        for w in rnn.parameters().values():
            if w.ndim == 1:
                w[...] = self.rng.normal(size=w.shape)
        shape = (T, B) if B else (T,)  # no B is a single sequence, without that axis
        inputs, targets = self.rng.integers(0, V, (2, *shape))
        return rnn, inputs, targets, self.rng.normal(size=(*shape[1:], rnn.state_size))


class TestMathematics(InFolder):
    def test_one_pass_over_hello_gives_what_one_computes_by_hand(self):
        rnn = RNN(hidden_size=1, vocab_size=4, seq_length=4, learning_rate=0.1, dtype=np.float64)
        rnn.Wax = np.array([[0.1, 0.2, 0.3, 0.4]])
        rnn.Waa = np.array([[0.5]])
        rnn.Wya = np.array([[1.0], [0.0], [2.0], [-1.0]])
        inputs, targets = [1, 0, 2, 2], [0, 2, 2, 3]  # "hell" and "ello" in the alphabet "ehlo"
        a, y_pred = rnn.forward(inputs, a_prev=[0.0])
        a_1 = math.tanh(0.2)
        a_2 = math.tanh(0.5 * a_1 + 0.1)
        np.testing.assert_allclose(a[:3, 0], [0, a_1, a_2])
        exp = [math.exp(a_1), 1, math.exp(2 * a_1), math.exp(-a_1)]
        np.testing.assert_allclose(y_pred[0], np.divide(exp, sum(exp)))
        self.assertAlmostEqual(rnn.loss(y_pred, targets), 5.526004, places=6)
        grads = rnn.backward(inputs, a, y_pred, targets)
        self.assertAlmostEqual(grads["Waa"].item(), 0.314196, places=6)

    def test_softmax_takes_all_numbers_on_any_axis_and_never_overflows(self):
        expected = np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum()
        for x in ([1, 2, 3], np.array([1, 2, 3], np.uint8), [1.0, 2, 3]):
            np.testing.assert_allclose(softmax(x), expected, rtol=1e-14)
        x = self.rng.normal(size=(2, 3, 4)).astype(np.float32)
        for axis in (0, 1, 2, -1):
            expected = np.exp(x) / np.exp(x).sum(axis, keepdims=True)
            np.testing.assert_allclose(softmax(x, axis), expected, rtol=1e-5)
        np.testing.assert_array_equal(softmax(x), softmax(x, axis=2))
        self.assertEqual(softmax(x).dtype, np.float32)
        with np.errstate(all="raise", under="ignore"):
            y = softmax([[1e308, -1e300], [-1e308, -1e308]])
        np.testing.assert_array_equal(y, [[1, 0], [0.5, 0.5]])

    def test_the_first_weights_have_the_sizes_that_the_comments_say_and_come_from_the_seed(self):
        rnn = RNN(300, 40, 5, 0.1)
        self.assertAlmostEqual(rnn.Wax.std(), 3, delta=0.06)
        np.testing.assert_allclose(rnn.Waa @ rnn.Waa.T, np.eye(300), atol=1e-5)
        self.assertAlmostEqual(rnn.Wya.std(), 1 / math.sqrt(300), delta=0.002)
        self.assertFalse(rnn.ba.any() or rnn.by.any())
        for name, w in rnn.parameters().items():
            same, other = (RNN(300, 40, 5, 0.1, seed=seed).parameters()[name] for seed in (0, 1))
            np.testing.assert_array_equal(w, same)
            self.assertEqual((w == other).all(), w.ndim == 1, name)
            self.assertEqual(w.dtype, np.float32)

    def test_forward_and_loss_are_the_equations_written_out(self):
        for B in (3, None):
            rnn, inputs, targets, a_prev = self.problem(B=B)
            a, y_pred = rnn.forward(inputs, a_prev)
            nats = 0
            for b in np.ndindex(inputs.shape[1:]):
                hidden = a_prev[b]
                for t in range(len(inputs)):
                    x = np.eye(7)[inputs[t][b]]
                    hidden = np.tanh(rnn.Waa @ hidden + rnn.Wax @ x + rnn.ba)
                    np.testing.assert_allclose(a[t + 1][b], hidden, atol=1e-13)
                    y = softmax(rnn.Wya @ hidden + rnn.by)
                    np.testing.assert_allclose(y_pred[t][b], y, atol=1e-13)
                    nats -= math.log(y[targets[t][b]])
            self.assertAlmostEqual(rnn.loss(y_pred, targets), nats / (B or 1), places=12)

    def test_the_loss_of_a_certain_and_wrong_prediction_is_large_and_not_infinite(self):
        y_pred = np.array([[1, 0, 0], [1, 0, 0]], np.float32)
        self.assertTrue(100 < RNN(4, 3, 2, 0.1).loss(y_pred, [1, 2]) < 1000)

    def test_the_loss_refuses_what_is_no_probability(self):
        rnn, inputs, targets, a_prev = self.problem()
        a, y_pred = rnn.forward(inputs, a_prev)
        for wrong in (rnn.logits(a[1:]), y_pred * 9, y_pred * math.nan, y_pred - 0.5):
            with self.assertRaisesRegex(
                UserError, "no probability: try a learning rate below 0.01"
            ):
                rnn.loss(wrong, targets)
        certain = rnn.one_hot(targets)  # from 0 to 1, both ends included
        self.assertEqual(rnn.loss(certain, targets), 0)
        self.assertGreater(rnn.loss(1 - certain, targets), 0)

    def test_inputs_and_targets_that_are_no_indices_of_characters_are_refused(self):
        rnn, inputs, targets, a_prev = self.problem()
        a, y_pred = rnn.forward(inputs, a_prev)
        one_hot = rnn.one_hot(inputs)
        below = np.where(inputs == inputs[2, 1], -1, inputs)
        above = np.where(inputs == inputs[2, 1], 7, inputs)
        for wrong in (one_hot, one_hot.astype(int), inputs * 1.0, below, above, 3, inputs[:0]):
            for use in (
                lambda wrong: rnn.forward(wrong, a_prev),
                lambda wrong: rnn.loss(y_pred, wrong),
                lambda wrong: rnn.backward(inputs, a, y_pred, wrong),
            ):
                with self.assertRaisesRegex(ValueError, r"must be indices from 0 to 6, \(T, B\)"):
                    use(wrong)

    def test_gradients_match_central_differences_for_every_parameter(self):
        shapes = [{}, {"T": 1}, {"B": 1}, {"B": None}, {"T": 1, "B": None}, {"H": 1}, {"T": 9}]
        for sizes in shapes:
            rnn, inputs, targets, _ = self.problem(**sizes)
            differences = check_gradients(rnn, inputs, targets)
            self.assertEqual(differences.keys(), rnn.parameters().keys())
            self.assertLess(max(differences.values()), 1e-6, sizes)

    def test_lists_are_arrays(self):
        rnn, inputs, targets, a_prev = self.problem()
        a, y_pred = rnn.forward(inputs, a_prev)
        np.testing.assert_equal(rnn.forward(inputs.tolist(), a_prev.tolist()), (a, y_pred))
        lists = [array.tolist() for array in (inputs, a, y_pred, targets)]
        self.assertEqual(rnn.loss(*lists[2:]), rnn.loss(y_pred, targets))
        np.testing.assert_equal(rnn.backward(*lists), rnn.backward(inputs, a, y_pred, targets))

    def test_check_gradients_names_the_one_that_is_wrong_and_leaves_the_network_as_it_was(self):
        rnn, inputs, targets, _ = self.problem()
        before = copy.deepcopy(rnn.parameters())
        a_prev = np.random.default_rng(0).standard_normal((3, 5))
        grads = rnn.backward(inputs, *rnn.forward(inputs, a_prev), targets)
        with mock.patch.object(rnn, "backward", return_value=grads):
            for name, grad in grads.items():
                grad.flat[-1] += 0.01 * np.abs(grad).max()
                found = check_gradients(rnn, inputs, targets)
                self.assertAlmostEqual(found.pop(name), 0.01, delta=0.002)
                self.assertLess(max(found.values()), 1e-6)
                grad.flat[-1] -= 0.01 * np.abs(grad).max()
        np.testing.assert_equal(rnn.parameters(), before)

    def test_check_gradients_is_relative_and_takes_a_gradient_of_zero(self):
        rnn, inputs, targets, _ = self.problem()
        rnn.Wya[...] = 0  # so that nothing flows back through it
        found = check_gradients(rnn, inputs, targets)
        self.assertLess(max(found.values()), 1e-6)
        with mock.patch.object(rnn, "loss", side_effect=lambda *args: 1e6 * RNN.loss(rnn, *args)):
            self.assertAlmostEqual(check_gradients(rnn, inputs, targets)["by"], 1, places=5)

    def test_check_gradients_refuses_float32_and_a_parameter_that_is_forgotten(self):
        gru, inputs, targets, _ = self.problem(kind=GRU)
        with self.assertRaisesRegex(UserError, "float64, not float32"):
            check_gradients(RNN(5, 7, 6, 0.1), inputs, targets)
        some = gru.parameters()
        del some["Wua"], some["bu"]
        told = self.assertRaisesRegex(UserError, r"in one of .* only: Wua, bu\Z")
        with mock.patch.object(gru, "parameters", return_value=some), told:
            check_gradients(gru, inputs, targets)

    @unittest.skipUnless(find_spec("torch"), "torch is not installed")
    def test_fifty_iterations_of_train_match_the_same_loop_in_torch_with_every_optimiser(self):
        for rule in (torch.optim.Adam, torch.optim.Adagrad, torch.optim.SGD):
            reader = self.reader("the fox said to the owl that it was late " * 8, 5, 3)
            rnn = RNN(6, reader.vocab_size, 5, 0.05, rule.__name__.lower(), dtype=np.float64)
            rnn.Wya *= 8  # so that some gradients are clipped
            twin = InTorch(rnn)
            places = twin.places
            optimiser = rule(places.values(), lr=0.05)
            clipped = 0
            with mock.patch.object(rnn, "update", wraps=rnn.update) as update:
                run = rnn.train(reader, max_iters=50, report=silent)
            reader.batch = 0
            for i, ((grads, *_), _) in enumerate(update.call_args_list):
                if reader.batch == 0:
                    a = torch.zeros(1, 3, 6).double()
                inputs, targets = reader.next_batch()
                loss, a = twin.loss(inputs, a[-1].detach(), targets)
                self.assertAlmostEqual(run.losses[i], loss.item() / len(inputs), delta=1e-10)
                optimiser.zero_grad()
                loss.backward()
                for name, place in places.items():  # before they are clipped
                    np.testing.assert_allclose(grads[name], place.grad, atol=1e-10, err_msg=name)
                    clipped += (place.grad.abs() > 5).sum().item()
                torch.nn.utils.clip_grad_value_(places.values(), 5)
                rate = 0.05 * min(1, (i + 1) / 5) * (1 + math.cos(math.pi * i / 50)) / 2
                optimiser.param_groups[0]["lr"] = rate
                optimiser.step()
            self.assertGreater(clipped, 1)
            for name, w in rnn.parameters().items():
                np.testing.assert_allclose(w, places[name].detach(), atol=1e-10, err_msg=name)

    def test_each_optimiser_is_its_formula_on_gradients_clipped_to_5(self):
        gradients = [0.5, -2.0, 100.0, -7.0]
        for optimizer in OPTIMIZERS:
            rnn = RNN(2, 3, 4, 0.1, optimizer, dtype=np.float64)
            run = Run(rnn)
            expected = rnn.by.copy()
            m = v = 0
            for t, g in enumerate(gradients, start=1):
                grads = {name: np.full_like(w, g) for name, w in rnn.parameters().items()}
                rnn.update(grads, run, scale=0.5)
                self.assertEqual(run.iteration, t)
                g = min(5, max(-5, g))
                if optimizer == "adam":
                    m = 0.9 * m + 0.1 * g
                    v = 0.999 * v + 0.001 * g * g
                    expected -= 0.05 * m / (1 - 0.9**t) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
                elif optimizer == "adagrad":
                    v += g * g
                    expected -= 0.05 * g / (math.sqrt(v) + 1e-10)
                else:
                    expected -= 0.05 * g
                np.testing.assert_allclose(rnn.by, expected, rtol=1e-12, err_msg=optimizer)

    def test_an_update_without_a_scale_is_at_the_learning_rate(self):
        rnn = RNN(2, 3, 4, 0.1, "sgd", dtype=np.float64)
        before = rnn.by.copy()
        rnn.update({name: np.ones_like(w) for name, w in rnn.parameters().items()}, Run(rnn))
        np.testing.assert_allclose(before - rnn.by, 0.1)

    def test_the_divisor_of_a_step_is_never_zero(self):
        for rule, _ in OPTIMIZERS.values():
            with np.errstate(all="raise"):
                step, _, _ = rule(np.zeros(2), np.zeros(2), np.zeros(2), 1, 0.1)
            self.assertEqual(step.tolist(), [0, 0])

    def test_update_refuses_a_gradient_of_another_shape_by_its_name(self):
        rnn, inputs, targets, a_prev = self.problem()
        grads = rnn.backward(inputs, *rnn.forward(inputs, a_prev), targets)
        for name, wrong in (("ba", 0.5), ("ba", np.float64(0.5)), ("Wax", grads["Wax"].T)):
            with self.assertRaisesRegex(UserError, f"gradient of {name} has shape "):
                rnn.update(grads | {name: wrong}, Run(rnn))

    def test_moments_of_a_new_run_are_zeros_of_their_own(self):
        rnn = RNN(4, 3, 2, 0.1)
        run = Run(rnn)
        for name, w in rnn.parameters().items():
            run.m[name] += 1
            self.assertFalse(run.v[name].any())
            w += 1
            self.assertFalse((run.best[name] == w).any())

    def test_the_rate_warms_up_for_100_iterations_or_a_tenth_and_falls_by_a_half_cosine(self):
        for max_iters, warm_up in ((2500, 100), (50, 5)):
            for i in (0, 1, warm_up - 1, warm_up, max_iters // 2, max_iters - 1):
                cosine = (1 + math.cos(math.pi * i / max_iters)) / 2
                self.assertAlmostEqual(
                    schedule(i, max_iters), min(1, (i + 1) / warm_up) * cosine, places=12
                )

    def test_sampling_frequencies_match_softmax_by_a_chi_square_bound(self):
        V, n = 6, 3000
        z = np.log([0.05, 0.1, 0.15, 0.2, 0.2, 0.3])
        rnn = RNN(4, V, 5, 0.1)
        rnn.Wax = np.zeros((4, V))
        rnn.Waa = np.zeros((4, 4))
        rnn.by = z  # all draws from one distribution
        for options in ({"temperature": 1}, {}, {"temperature": 2.0}):
            drawn = rnn.sample(np.zeros(4), 0, n, seed=1, **options)
            expected = n * softmax(z / options.get("temperature", 0.7))
            chi_square = ((np.bincount(drawn, minlength=V) - expected) ** 2 / expected).sum()
            self.assertTrue(0.1 < chi_square < 20.5)  # 5 degrees of freedom: 99.9 % of samples

    def test_sample_goes_on_from_a_state_and_an_index_and_a_seed_repeats_it(self):
        rnn, _, _, a_prev = self.problem(B=None)
        likeliest = []
        ix = 3
        a = a_prev
        for _ in range(9):
            states, y_pred = rnn.forward([ix], a)
            a = states[-1]
            ix = int(y_pred[0].argmax())
            likeliest.append(ix)
        self.assertEqual(rnn.sample(a_prev, 3, 9, temperature=0), likeliest)
        drawn = [rnn.sample(a_prev, 3, 50, seed=seed) for seed in (1, 1, 2)]
        self.assertTrue(drawn[0] == drawn[1] != drawn[2])
        self.assertEqual(len(drawn[0]), 50)

    def test_a_temperature_below_zero_is_refused(self):
        reader = self.reader("abcdefgh" * 20, 4)
        for temperature in (-0.5, math.nan, math.inf):
            with self.assertRaisesRegex(UserError, "temperature must be a number from 0 on"):
                RNN(16, 8, 4).predict(reader, "a", 5, temperature)

    def test_temperature_zero_takes_the_likeliest_character_after_the_whole_start(self):
        reader = self.reader("abcdefgh" * 20, 4)
        rnn = RNN(16, 8, 4, 0.1, seed=5)
        start = text = "abcdefgh" * 100
        for _ in range(20):
            y_pred = rnn.forward(encode(text, reader.chars), np.zeros(16))[1]
            text += reader.chars[y_pred[-1].argmax()]
        for temperature in (0, 1e-320):
            self.assertEqual(rnn.predict(reader, start, 20, temperature), text)

    def test_without_a_start_a_text_is_begun_as_after_a_newline(self):
        for text, start in (("ab\ncd\n" * 20, "\n"), ("abcdefgh" * 20, "a")):
            reader = self.reader(text, 4)
            rnn = RNN(16, reader.vocab_size, 4, seed=3)
            self.assertEqual(
                rnn.predict(reader, "", 9, seed=1), rnn.predict(reader, start, 9, seed=1)[1:]
            )

    def test_evaluate_reads_a_text_in_up_to_64_streams_of_at_least_2000_characters(self):
        rnn = RNN(6, 62, 8, 0.01, dtype=np.float64)
        text = np.tile(DataReader(FABLES, 8).train_ids[:70_000], 2)
        for length, streams in ((2, 1), (3999, 1), (4001, 2), (12_001, 6), (140_000, 64)):
            steps = (length - 1) // streams
            nats = []
            for start in range(0, streams * steps, steps):
                ids = text[start : start + steps + 1]
                y_pred = rnn.forward(ids[:-1], np.zeros(6))[1]
                nats.append(rnn.loss(y_pred, ids[1:]) / steps)
            self.assertAlmostEqual(rnn.evaluate(text[:length]), np.mean(nats), places=12)
        with self.assertRaisesRegex(UserError, "nothing to predict in 1 character"):
            rnn.evaluate(text[:1])


class TestCounting(InFolder):
    def test_counting_is_the_formula_written_out(self):
        text = SHORT[:900]
        reader = self.reader(text, 8, 2, val_fraction=0.2)
        train, V = text[: len(reader.train_ids)], reader.vocab_size

        def probability(c, h):
            shorter = probability(c, h[1:]) if h else 1 / V
            after = [train[i + len(h)] for i in range(3 - len(h), len(train) - len(h))]
            after = [c for c, i in zip(after, range(3, len(train))) if train[i - len(h) : i] == h]
            n, d = len(after), len(set(after))
            return (after.count(c) + d * shorter) / (n + d) if n else shorter

        expected = []
        for length in (1, 2, 3):
            places = range(len(train) + 1, len(text))
            nats = [-math.log(probability(text[i], text[i - length : i])) for i in places]
            expected.append(sum(nats) / len(nats))
        counted = counting(reader.train_ids, reader.val_ids, V)
        np.testing.assert_allclose(counted, expected, rtol=1e-12)
        for longest in (1, 2):
            fewer = counting(reader.train_ids, reader.val_ids, V, longest)
            np.testing.assert_allclose(fewer, expected[:longest], atol=0.01)

    def test_counting_on_the_fables_gives_the_figures_of_the_readme(self):
        reader = DataReader(FABLES, 32, 16)
        counted = counting(reader.train_ids, reader.val_ids, reader.vocab_size)
        np.testing.assert_allclose(counted, [2.241, 1.663, 1.332], atol=5e-4)

    def test_counting_counts_the_last_million_characters_before_what_is_held_out(self):
        ids = self.rng.integers(0, 3, 1_000_040)
        ids[:40] = 2
        val = self.rng.integers(0, 3, 50)
        self.assertEqual(counting(ids, val, 3, 1), counting(ids[40:], val, 3, 1))
        self.assertNotEqual(counting(ids, val, 3, 1), counting(ids[41:], val, 3, 1))


class TestTraining(InFolder):
    def test_a_repeated_word_is_learned_by_every_optimiser_until_the_threshold(self):
        reader = self.reader("hello " * 400, 12, 4)
        for optimizer, rate in (("adam", 0.01), ("adagrad", 0.1), ("sgd", 0.1)):
            rnn = RNN(32, reader.vocab_size, 12, rate, optimizer)
            run = rnn.train(reader, 5000, threshold=0.1, report=silent)
            smooth = [math.log(5)]
            for loss in run.losses:
                smooth.append(0.99 * smooth[-1] + 0.01 * loss)
            self.assertTrue(smooth[-1] <= 0.1 < min(smooth[:-1]))
            self.assertLess(rnn.evaluate(reader.val_ids), 0.1, optimizer)
            said = rnn.predict(reader, "hel", 21, temperature=0)
            self.assertEqual(said, "hello hello hello hello ")

    def test_the_hidden_state_is_carried_from_batch_to_batch_and_zero_at_the_start_of_a_pass(self):
        reader = self.reader(SHORT[:400], 8, 3)
        rnn = RNN(16, reader.vocab_size, 8, 1e-12, dtype=np.float64)  # its weights stay
        losses = rnn.train(reader, max_iters=2 * reader.batches, report=silent).losses
        a, y_pred = rnn.forward(reader.inputs, np.zeros((3, 16)))  # all steps of a pass at once
        expected = []
        for start in range(0, len(a) - 1, 8):
            steps = slice(start, start + 8)
            targets = reader.targets[steps]
            expected.append(rnn.loss(y_pred[steps], targets) / len(targets))
        np.testing.assert_allclose(losses, expected * 2, rtol=1e-8)

    def test_a_run_in_two_parts_is_the_run_in_one_and_without_it_a_new_one_starts(self):
        reader = DataReader("text.txt", 8, 4)
        whole, parts = (RNN(16, reader.vocab_size, 8, 0.01) for _ in range(2))
        run = whole.train(reader, max_iters=200, report=silent)
        half = Run(parts)
        with self.assertRaises(KeyboardInterrupt):
            parts.train(reader, max_iters=200, report=stop_at_130, run=half)
        self.assertEqual(half.iteration, 130)
        parts.train(reader, report=silent, run=half)  # to the end that it has
        self.assertEqual(run.losses, half.losses)
        np.testing.assert_equal(parts.parameters(), whole.parameters())
        fresh = copy.deepcopy(whole)
        again = whole.train(reader, max_iters=200, report=silent)
        self.assertEqual(fresh.train(reader, max_iters=200, report=silent).losses, again.losses)
        self.assertEqual((again.iteration, len(again.losses)), (200, 200))

    def test_a_run_goes_on_to_a_later_end(self):
        reader = DataReader("text.txt", 8, 4)
        rnn = RNN(16, reader.vocab_size, 8, 0.01)
        run = rnn.train(reader, max_iters=20, report=silent)
        rnn.train(reader, max_iters=30, report=silent, run=run)
        self.assertEqual((run.iteration, run.max_iters), (30, 30))
        rnn.train(reader, max_iters=30, report=silent, run=run)
        self.assertEqual((run.iteration, run.max_iters), (30, 30))
        self.assertEqual(Run(rnn).max_iters, 2500)

    def test_a_threshold_that_guessing_reaches_ends_a_run_before_it_begins(self):
        reader = DataReader("text.txt", 8, 4)
        rnn = RNN(16, reader.vocab_size, 8, 0.01)
        for threshold in (math.log(reader.vocab_size), 10):
            self.assertEqual(rnn.train(reader, threshold=threshold, report=silent).iteration, 0)
        out = self.train("--threshold=50")
        self.assertIn("the run has ended at iteration 0, smooth 3.892\n", out)

    def test_copies_pickles_and_loaded_models_learn_as_the_model_does(self):
        reader = DataReader("text.txt", 8, 4)
        rnn = RNN(16, reader.vocab_size, 8, 0.01, seed=3, dtype=np.float64)
        save_checkpoint("mine.npz", rnn, Run(rnn), reader)
        others = [load_checkpoint("mine.npz")[0], copy.deepcopy(rnn)]
        others.append(pickle.loads(pickle.dumps(rnn)))
        losses = rnn.train(reader, max_iters=60, report=silent).losses
        for other in others:
            self.assertEqual(other.train(reader, max_iters=60, report=silent).losses, losses)

    def test_train_ends_with_the_weights_it_reached_and_best_has_the_lowest_validation(self):
        reader = DataReader("text.txt", 8, 4)
        rnn = RNN(64, reader.vocab_size, 8, 0.01)
        rows = []
        run = rnn.train(reader, max_iters=1200, report=lambda run: rows.append(run.seconds))
        iterations, train_losses, val_losses = zip(*run.history)
        self.assertEqual(iterations, (0, 100, 250, 500, 1000, 1200))
        self.assertEqual(len(rows), 1201)  # one call before the first iteration
        self.assertTrue(min(val_losses) < val_losses[-1] == rnn.evaluate(reader.val_ids))
        means = [np.mean(run.losses[start:stop]) for start, stop in pairwise(iterations)]
        np.testing.assert_allclose(train_losses, [math.nan, *means])  # each since the row before
        self.assertEqual(rows[0], 0)
        self.assertTrue(all(before < after for before, after in pairwise(rows)))
        rnn.use(run.best)
        self.assertEqual(rnn.evaluate(reader.val_ids), min(val_losses))
        self.assertEqual(run.best_iteration, iterations[np.argmin(val_losses)])

    def test_a_run_that_only_gets_worse_keeps_the_weights_it_began_with(self):
        reader = DataReader("text.txt", 8, 4)
        rnn = RNN(16, reader.vocab_size, 8, 30.0)
        before = copy.deepcopy(rnn.parameters())
        run = rnn.train(reader, max_iters=5, report=silent)
        np.testing.assert_equal(run.best, before)
        self.assertEqual(run.best_iteration, 0)

    def test_of_rows_that_are_alike_the_first_is_kept(self):
        reader = DataReader("text.txt", 8, 4)
        rnn = RNN(16, reader.vocab_size, 8)
        run = Run(rnn)
        for iteration in (0, 5):
            run.iteration = iteration
            run.validate(rnn, reader)
        self.assertEqual((run.best_iteration, run.history[0][2]), (0, run.history[1][2]))
        self.assertEqual(run.best_loss, run.history[0][2])

    def test_use_takes_values_and_not_the_arrays_that_hold_them(self):
        rnn = RNN(4, 3, 2)
        run = Run(rnn)
        rnn.use(run.best)
        before = copy.deepcopy(run.best)
        for w in rnn.parameters().values():
            w += 1
        np.testing.assert_equal(run.best, before)

    def test_other_streams_start_from_a_zero_state(self):
        rnn = RNN(16, DataReader("text.txt", 8, 4).vocab_size, 8, 1e-12, dtype=np.float64)
        run = rnn.train(DataReader("text.txt", 8, 4), max_iters=3, report=silent)
        for streams in (1, 3):
            reader = DataReader("text.txt", 8, streams)
            rnn.train(reader, max_iters=run.iteration + 1, report=silent, run=run)
            inputs, targets = (
                x[reader.batch * 8 - 8 : reader.batch * 8] for x in (reader.inputs, reader.targets)
            )
            y_pred = rnn.forward(inputs, np.zeros((streams, 16)))[1]
            self.assertAlmostEqual(run.losses[-1], rnn.loss(y_pred, targets) / 8, places=9)

    def test_with_nothing_held_out_the_best_weights_are_the_latest(self):
        reader = DataReader("text.txt", 8, 4, val_fraction=0)
        rnn = RNN(16, reader.vocab_size, 8, 0.01)
        run = rnn.train(reader, max_iters=150, report=silent)
        np.testing.assert_equal(run.best, rnn.parameters())
        self.assertEqual(run.best_iteration, 150)
        self.assertTrue(all(math.isnan(val_loss) for _, _, val_loss in run.history))

    def test_weights_that_diverge_never_become_the_best(self):
        reader = DataReader("text.txt", 8, 4)
        rnn = RNN(16, reader.vocab_size, 8, 1e38, "sgd")
        run = Run(rnn)
        with self.assertRaisesRegex(UserError, r"has nan,.* a learning rate below 1e\+38"):
            rnn.train(reader, max_iters=1, report=silent, run=run)
        self.assertTrue(all(np.isfinite(w).all() for w in run.best.values()))

    def test_a_row_validates_on_the_first_100_000_characters_that_are_held_out(self):
        reader = self.reader("abcdefgh" * 20_000, 8, 4, val_fraction=0.9)
        reader.val_ids = reader.val_ids.copy()
        reader.val_ids[100_000:] = 0
        rnn = RNN(4, 8, 8, 0.01)
        run = Run(rnn)
        run.validate(rnn, reader)
        self.assertEqual(run.history[0][2], rnn.evaluate(reader.val_ids[:100_000]))

    def test_the_loss_that_is_kept_is_for_each_character_also_in_a_shorter_batch(self):
        reader = self.reader("ab" * 21, 8, 2, val_fraction=0)  # 20 steps: batches of 8, 8 and 4
        rnn = RNN(4, 2, 8, 1e-12)  # so slow that every batch costs the same
        losses = rnn.train(reader, max_iters=3, report=silent).losses
        np.testing.assert_allclose(losses[2], losses[1], rtol=1e-4)

    def test_without_a_rate_each_optimiser_takes_its_own(self):
        rates = set()
        for name, (_, rate) in OPTIMIZERS.items():
            self.assertEqual(RNN(4, 3, 2, optimizer=name).learning_rate, rate)
            rates.add(rate)
        self.assertEqual(len(rates), 3)
        self.assertEqual(RNN(4, 3, 2).optimizer, "adam")
        for rate in (0, -1, math.nan, math.inf):
            with self.assertRaisesRegex(UserError, "must be a positive number"):
                RNN(4, 3, 2, rate)

    def test_a_gru_and_an_lstm_by_subclass_are_checked_trained_saved_loaded_and_sampled(self):
        reader = DataReader("text.txt", 8, 4)
        for kind in (GRU, LSTM):
            for B in (3, None):
                rnn, inputs, targets, _ = self.problem(B=B, kind=kind)
                self.assertLess(max(check_gradients(rnn, inputs, targets).values()), 1e-6, kind)
            rnn = kind(16, reader.vocab_size, 8, 0.01)
            run = rnn.train(reader, max_iters=250, report=silent)
            self.assertLess(run.history[-1][2], 3)
            path = save_checkpoint(f"{kind.__name__}.npz", rnn, run, reader)
            loaded, again, about = load_checkpoint(path, model=kind)
            self.assertEqual(loaded.predict(about, "T", 40, 0), rnn.predict(reader, "T", 40, 0))
            np.testing.assert_equal((again.m, again.best), (run.m, run.best))
            losses = [
                net.train(reader, 260, report=silent, run=its).losses
                for net, its in ((rnn, run), (loaded, again))
            ]
            self.assertEqual(*losses)
        self.refuse("Wra, br, Wux, Wua, bu: it is of another network than RNN", "sample", "GRU.npz")
        self.refuse(
            "has Wx, Wa, b, Wya, by: it is of another network than RNN", "sample", "LSTM.npz"
        )


class TestText(InFolder):
    def test_reads_the_same_text_as_python_does(self):
        texts = [
            "plain\n",
            "naïve “quotes” 語 😀\r\nand a Windows line\n",
            "\ufeffa mark",
            "old\rMac",
        ]
        for text in [*texts, "a語😀é\r\n" * 100_000]:  # the last is longer than a piece of encode
            reader = self.reader(text * 3, 2, val_fraction=0)
            expected = "".join(io.TextIOWrapper(io.BytesIO((text * 3).encode()), "utf-8-sig"))
            self.assertEqual("".join(reader.chars[ix] for ix in reader.train_ids), expected)
            self.assertEqual(reader.chars, sorted(set(expected)))

    def test_a_pass_reads_every_character_once_and_never_what_is_held_out(self):
        for length, streams in ((200, 3), (200, 7), (41, 16)):
            text = "".join(map(chr, range(200, 200 + length)))  # a character tells its place
            reader = self.reader(text, 5, streams)
            trained = len(reader.train_ids)
            self.assertEqual(reader.val_ids.tolist(), list(range(trained, length)))
            self.assertEqual(trained, length - length // 10)
            for _ in range(2):
                read = []
                while not read or reader.batch != 0:
                    inputs, targets = reader.next_batch()
                    np.testing.assert_array_equal(targets, inputs + 1)
                    self.assertLessEqual(len(inputs), 5)
                    read.append(inputs)
                columns = np.concatenate(read).T.ravel()  # stream after stream
                np.testing.assert_array_equal(columns, range(len(columns)))
                self.assertLess(trained - 1 - len(columns), streams)
                self.assertEqual(len(read), reader.batches)

    def test_nothing_is_held_out_where_a_part_would_be_too_short(self):
        for length, streams, fraction, held_out in (
            (20, 1, 0.1, 2),
            (19, 1, 0.1, 0),
            (20, 17, 0.1, 2),
            (20, 18, 0.1, 0),
            (20, 1, 0, 0),
            (20, 2, 0.85, 17),
        ):
            reader = self.reader(
                "ab" * 10 if length == 20 else "a" * 18 + "b", 5, streams, fraction
            )
            self.assertEqual(len(reader.val_ids), held_out, (length, streams, fraction))
            self.assertEqual(len(reader.train_ids), length - held_out)

    def test_a_text_that_is_too_short_or_has_one_character_is_refused(self):
        self.assertEqual(len(self.reader("abc", 5, 2).inputs), 1)
        for text, streams in (("ab", 2), ("aaaa", 1), ("", 1)):
            with self.assertRaisesRegex(UserError, f"needs more than {streams} characters, 2"):
                self.reader(text, 5, streams)

    def test_shuffled_lines_are_the_same_lines_in_an_order_that_is_always_the_same(self):
        names = [f"name {i:03}" for i in range(200)]
        texts = []
        for end in ("", "\n"):  # a last newline is added where it is missing
            reader = self.reader("\n".join(names) + end, 5, shuffle_lines=True)
            texts.append("".join(reader.chars[ix] for ix in [*reader.train_ids, *reader.val_ids]))
        self.assertEqual(texts[0], texts[1])
        lines = texts[0].splitlines(keepends=True)
        self.assertNotEqual(lines, sorted(lines))
        self.assertEqual(sorted(lines), [f"{name}\n" for name in names])

    def test_given_characters_are_used_and_unknown_ones_named(self):
        reader = self.reader("abcabc", 2, chars=list("abcd"))
        self.assertEqual((reader.vocab_size, reader.train_ids.tolist()), (4, [0, 1, 2] * 2))
        with self.assertRaisesRegex(UserError, r"never saw '\\t' 'é' '語'"):
            self.reader("abc é語\tabc", 2, chars=list("abc "))
        self.assertEqual(encode("", "ab").tolist(), [])

    def test_as_many_characters_as_a_byte_has_values_and_one_more_are_told_apart(self):
        for size in (255, 256, 257):
            text = "".join(map(chr, range(1000, 1000 + size)))
            ids = encode(text, list(text))
            self.assertEqual(ids.tolist(), list(range(size)))
            with self.assertRaisesRegex(UserError, "never saw 'a'"):
                encode("a" + text, list(text))

    def test_a_reader_knows_its_text_again_by_the_checksum(self):
        reader = DataReader("text.txt", 8)
        DataReader("text.txt", 8, checksum=reader.checksum)
        self.assertNotEqual(self.reader(SHORT + "a", 8).checksum, reader.checksum)
        with self.assertRaisesRegex(UserError, "text.txt is not the text that the network was"):
            DataReader("text.txt", 8, checksum=reader.checksum)

    def test_a_new_text_begins_after_a_newline_where_there_is_one(self):
        self.assertEqual(char_rnn.start_char(["\t", "\n", "a"]), "\n")
        self.assertEqual(char_rnn.start_char(["A", "C"]), "A")

    def test_a_reader_by_path_and_numpys_numbers_can_be_saved(self):
        two = np.int64(2)
        reader = DataReader(Path("text.txt"), two * 4, two, np.float64(0.2))
        rnn = RNN(two * 2, np.int64(reader.vocab_size), two * 4, np.float32(0.01))
        _, _, about = load_checkpoint(save_checkpoint("mine.npz", rnn, Run(rnn), reader))
        self.assertEqual((about.path, about.batch_size, about.val_fraction), ("text.txt", 2, 0.2))


NARROW = """
import contextlib, io, os, resource, sys
import char_rnn

if sys.argv[1] == "full":  # no file may grow past a kilobyte
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
elif os.geteuid() == 0:  # root may write anywhere: it becomes a user, once all is imported
    with contextlib.redirect_stdout(io.StringIO()):
        char_rnn.main(["test", "char_rnn.npz", "other.txt"])
    os.setuid(65534)
sys.exit(char_rnn.main(sys.argv[2:]))
"""


@unittest.skipUnless(os.name == "posix", "needs a POSIX system")
class TestSystem(InFolder):
    def test_a_run_killed_or_stopped_at_any_moment_resumes_bit_for_bit(self):
        flags = [*self.flags, "--seq-length=3", "--max-iters=2200"]
        self.succeed(*flags, "--checkpoint=straight.npz")
        command = flags
        for row, end in (("0", "SIGINT"), ("500", "SIGKILL"), ("1,500", "SIGINT")):
            process = self.started(*command, row=row)
            process.send_signal(getattr(signal, end))
            out, err = process.communicate()
            if end == "SIGINT":
                self.assertEqual((process.returncode, err), (130, ""))
                self.assertIn("\nstopped: all up to the last row is saved in char_rnn.npz\n", out)
                printed = re.search("to go on:  python .*char_rnn.py (.*)", out)[1]
                command = printed.split()
                self.assertEqual(command, ["resume", "char_rnn.npz"])
            iteration = load_checkpoint("char_rnn.npz")[1].iteration
            self.assertTrue(iteration in (0, 100, 250) or iteration % 500 == 0)
            self.assertGreaterEqual(iteration, int(row.replace(",", "")))
            if row == "0":
                self.assertLess(iteration, 2200)  # a row is seen at once, in a pipe as well
        status, _, err = self.real(*command)
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(self.contents("straight.npz"), self.contents("char_rnn.npz"))

    def test_ctrl_c_outside_of_training_is_no_traceback(self):
        with mock.patch.object(char_rnn, "train_command", side_effect=KeyboardInterrupt):
            self.assertEqual(self.main(*self.flags), (130, "", ""))

    def test_a_new_run_takes_a_free_name_whatever_stands_there_and_keeps_it_from_others(self):
        self.write("char_rnn.npz", "a thesis")
        Path("char_rnn-2.npz").symlink_to("nowhere.npz")
        before = self.files()
        flags = [*self.flags, "--max-iters=600"]
        runs = [self.start(*flags, f"--seed={seed}") for seed in (0, 1)]
        outs = [process.communicate()[0] for process in runs]
        saved = [re.search("saving in (.*)", out)[1] for out in outs]
        self.assertEqual(set(saved), {"char_rnn-3.npz", "char_rnn-4.npz"})
        for seed, path in enumerate(saved):
            self.train("--max-iters=600", f"--seed={seed}", f"--checkpoint=alone{seed}.npz")
            self.assertEqual(self.contents(path), self.contents(f"alone{seed}.npz"))
        self.assertNotEqual(self.contents("alone0.npz"), self.contents("alone1.npz"))
        after = self.files()
        self.assertEqual({name: after[name] for name in before}, before)
        self.assertFalse(Path("nowhere.npz").exists())

    def test_of_two_processes_on_one_checkpoint_each_file_is_whole_and_the_last_one_wins(self):
        flags = [*self.flags, "--max-iters=2000"]
        self.succeed(*flags, "--checkpoint=straight.npz")
        first = self.started(*flags, row="500")
        second = self.start("resume", "char_rnn.npz")
        for process in (first, second):
            process.communicate()
            self.assertEqual(process.returncode, 0)
        self.assertEqual(self.contents("char_rnn.npz"), self.contents("straight.npz"))
        self.assertEqual(sorted(self.files()), ["char_rnn.npz", "straight.npz", "text.txt"])

    def test_a_full_disk_or_a_read_only_folder_is_told_before_training_and_costs_nothing(self):
        self.train("--max-iters=100")
        self.write("other.txt", SHORT[:99])
        before = self.files()
        self.write("narrow.py", NARROW)
        env = {**os.environ, "PYTHONPATH": str(HERE)}
        self.addCleanup(os.chmod, ".", 0o755)
        for mode, how, said in ((0o755, "full", "File too large"), (0o555, "user", "denied")):
            os.chmod(".", mode)
            for args in (self.flags, ["resume", "char_rnn.npz", "--max-iters=9000"]):
                status, out, err = self.real(how, *args, script=["narrow.py"], env=env)
                self.assertEqual((status, out), (2, ""))
                self.assertRegex(err, rf"\Achar_rnn.py: error: .*{said}: 'char_rnn.npz'\n\Z")
            os.chmod(".", 0o755)
            self.assertEqual(self.files(), {**before, "narrow.py": NARROW.encode()})

    def test_a_link_stays_a_link_and_all_is_written_in_the_folder_of_its_file(self):
        Path("disk").mkdir()
        self.train("--max-iters=20", "--checkpoint=disk/real.npz")
        Path("link.npz").symlink_to("disk/real.npz")
        with mock.patch.object(os, "replace", side_effect=os.replace) as replace:
            self.succeed("resume", "link.npz", "--max-iters=30")
        folders = {
            Path(name).resolve().parent for call in replace.call_args_list for name in call[0]
        }
        self.assertEqual(folders, {Path("disk").resolve()})
        self.assertTrue(Path("link.npz").is_symlink())
        self.assertEqual(load_checkpoint("disk/real.npz")[1].iteration, 30)

    def test_a_checkpoint_keeps_its_permissions(self):
        self.train("--max-iters=20")
        Path("char_rnn.npz").chmod(0o600)
        self.succeed("resume", "char_rnn.npz", "--max-iters=30")
        self.assertEqual(Path("char_rnn.npz").stat().st_mode & 0o777, 0o600)

    def test_a_bug_in_a_copy_is_no_mistake_of_the_user_in_every_command(self):
        self.train("--max-iters=1")
        source = Path(SCRIPT).read_text(encoding="utf-8")
        for line, wrong in (
            ("dz @ self.Wya\n", "dz @ self.Waa\n"),
            ("(1 + math.cos", "('1' + math.cos"),
            ("        self.v = deepcopy(self.m)\n", "        self.v = self.m.copi()\n"),
            (
                "        self.seq_length = seq_length\n        self.learning",
                "        self.learning",
            ),
            ("        H, V = hidden_size, vocab_size\n", "        H = hidden_size\n"),
        ):
            self.assertIn(line, source)
            copy_of = types.ModuleType("copy_of")
            copy_of.__file__ = SCRIPT
            exec(source.replace(line, wrong, 1), vars(copy_of))
            for args in (self.flags, ["resume", "char_rnn.npz", "--max-iters=9"]):
                with self.assertRaises(Exception) as bug, contextlib.redirect_stdout(io.StringIO()):
                    copy_of.main(args)
                self.assertNotIsInstance(bug.exception, (copy_of.UserError, OSError), wrong)

    def test_the_script_alone_names_the_text_that_it_lacks(self):
        shutil.copy(SCRIPT, "char_rnn.py")
        status, out, err = self.real(script=("char_rnn.py",))
        self.assertEqual((status, out), (2, ""))
        self.assertRegex(err, r"\Achar_rnn.py: error: .*No such file.*fables.txt'\n\Z")

    def test_what_goes_to_a_pipe_is_utf_8_and_what_is_no_terminal_has_no_live_line(self):
        text = "лиса и ворона \x1b[31m語\n" * 30
        self.write("text.txt", text)
        env = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
        status, out, err = self.real(*self.flags, "--max-iters=300", env=env)
        self.assertEqual((status, err, "\r" in out), (0, "", False))
        _, out, _ = self.real("sample", "--start", text[:20], "--length=0", env=env)
        self.assertEqual(out, text[:20] + "\n")
        self.assertIn("'é' '語2'"[:3], self.real("sample", "--start=é", env=env)[2])

    def test_a_terminal_gets_a_live_line_that_rows_replace(self):
        self.write("text.txt", "the fox and the owl\n" * 30)
        out = self.on_terminal(*self.flags, "--max-iters=3000")
        live = re.findall(r"( *[\d,]+  loss [\d.]+  \d+ s left *)\r", out)
        numbers = [int(line.split()[0].replace(",", "")) for line in live]
        rows = {100, 250, *range(500, 3001, 500)}
        self.assertEqual(numbers, [i for i in range(10, 3000, 10) if i not in rows])
        self.assertEqual(set(map(len, live)), {40})
        rows = re.findall(r"( *(?:100|250|3,000)   .*)\r\n", out)
        self.assertTrue(len(rows) == 3 and min(map(len, rows)) >= 40)
        losses = [float(line.split()[2]) for line in live]
        run = load_checkpoint("char_rnn.npz")[1]
        np.testing.assert_allclose(losses, [run.losses[i - 1] for i in numbers], atol=5e-4)

    def test_a_terminal_of_another_encoding_gets_what_it_can_show(self):
        self.write("café.txt", SHORT)
        env = {**os.environ, "PYTHONIOENCODING": "latin-1"}
        flags = [*SMALL, "--max-iters=1"]
        self.assertIn("caf\\xe9.txt", self.on_terminal("café.txt", *flags, env=env))
        env["PYTHONIOENCODING"] = "ascii"
        self.assertIn("caf?.txt", self.on_terminal("café.txt", *flags, env=env))

    def on_terminal(self, *args, **options):
        import pty

        master, terminal = pty.openpty()
        process = self.start(*args, stdout=terminal, **options)
        os.close(terminal)
        chunks = []
        with contextlib.suppress(OSError):  # Linux ends a terminal with an error
            while chunk := os.read(master, 4096):
                chunks.append(chunk)
        os.close(master)
        self.assertEqual((process.wait(), process.stderr.read()), (0, ""))
        return b"".join(chunks).decode(errors="backslashreplace")

    def test_head_ends_a_run_in_silence(self):
        process = self.started(*self.flags, "--hidden-size=256", row="0")
        process.stdout.close()  # all that "| head" does when it has seen enough
        self.assertEqual((process.stderr.read(), process.wait()), ("", -signal.SIGPIPE))

    def test_one_thread_is_used_unless_the_user_says_otherwise(self):
        code = "import char_rnn, os; print(os.environ['OMP_NUM_THREADS'])"
        env = {**os.environ, "PYTHONPATH": str(HERE)}
        del env["OMP_NUM_THREADS"]
        self.assertEqual(self.real(code, script=["-c"], env=env)[1], "1\n")
        env["OMP_NUM_THREADS"] = "2"
        self.assertEqual(self.real(code, script=["-c"], env=env)[1], "2\n")

    def test_a_text_that_cannot_be_read_again_is_read_and_no_command_that_fails_is_printed(self):
        os.mkfifo("pipe.txt")
        for text in ("-", "pipe.txt"):
            flags = [text, *SMALL, "--max-iters=100000", f"--checkpoint={text[:1]}.npz"]
            process = self.start("train", *flags, stdin=subprocess.PIPE)
            if text == "-":
                process.stdin.write(SHORT)
            else:
                self.write(text, SHORT)
            process.stdin.close()
            process.stdin = None
            next(line for line in process.stdout if line.split()[:1] == ["100"])
            process.send_signal(signal.SIGINT)
            out, err = process.communicate()
            self.assertEqual((process.returncode, err), (130, ""))
            self.assertRegex(out, rf"saved in {text[:1]}\.npz\n\Z")


class TestCommandLine(InFolder):
    def test_rows_come_at_0_100_250_and_every_interval_and_an_ended_run_is_only_told(self):
        out = self.train("--max-iters=1250", "--eval-interval=400", "--checkpoint=run.npz")
        out += self.succeed("resume", "run.npz", "--max-iters=1300")
        row = r"^( *([\d,]+) +([\d.]+) +(-|\d\.\d{3}) +(\d\.\d{3}) +(?:-|\d+)  (.+))$"
        found = re.findall(row, out, re.MULTILINE)
        lines, iterations, smooth, train_losses, val_losses, samples = zip(*found)
        numbers = [int(iteration.replace(",", "")) for iteration in iterations]
        self.assertEqual(numbers, [0, 100, 250, 400, 800, 1200, 1250, 1300])
        self.assertEqual(out.count(char_rnn.HEADER), 2)  # once for each of the two
        self.assertTrue(max(map(len, lines)) <= 80 and min(map(len, samples)) >= 20)
        _, run, _ = load_checkpoint("run.npz")
        self.assertEqual(val_losses, tuple(f"{row[2]:.3f}" for row in run.history))
        means = tuple(f"{row[1]:.3f}".replace("nan", "-") for row in run.history)
        self.assertEqual(train_losses, means)
        self.assertEqual(smooth[-1], f"{run.smooth_loss:.3f}")
        self.assertIn("read 14.7 times in 1,250 iterations", out)  # 85 batches of 4 x 8
        before = self.contents("run.npz")
        out = self.succeed("resume", "run.npz")
        self.assertIn("the run has ended at iteration 1,300", out)
        self.assertNotIn(char_rnn.HEADER, out)
        self.assertEqual(self.contents("run.npz"), before)

    def test_a_row_shows_what_the_network_writes_after_a_newline(self):
        out = self.train("--max-iters=100")
        rnn, _, about = load_checkpoint("char_rnn.npz")
        text = rnn.predict(about, "\n", 40, seed=0)
        self.assertIn(f"  {' '.join(text.split())}\n", out)

    def test_the_time_left_is_that_of_the_iterations_that_are_left(self):
        reader = DataReader("text.txt", 8, 4)
        rnn = RNN(16, reader.vocab_size, 8, 0.01)
        run = Run(rnn, max_iters=1000, iteration=250, seconds=5.0, history=[[250, 1.0, 1.0]])
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            char_rnn.print_progress(rnn, reader, run)
        self.assertEqual(out.getvalue().split()[4], "15")

    def test_the_default_run_reads_the_fables_whatever_the_folder_and_however_it_is_started(self):
        Path("link.py").symlink_to(SCRIPT)
        out = self.real("--max-iters=2", script=("link.py",))[1]
        length = len(Path(FABLES).read_text(encoding="utf-8"))
        sizes = f"{length - length // 10:,} characters to train on, .*\n{length // 10:,} characters"
        self.assertRegex(out, f"\\Afables.txt, 256 hidden units, 97,598 parameters\n{sizes} held")
        self.assertIn("guessing among 62 costs 4.127\n", out)
        self.assertEqual(self.real("--help", script=("-OO", SCRIPT))[0], 0)

    def test_every_flag_of_train_arrives_where_it_belongs(self):
        flags = "--hidden-size=6 --seq-length=7 --batch-size=5 --optimizer=sgd --max-iters=9"
        flags += " --learning-rate=0.25 --eval-interval=3 --val-fraction=0.2 --shuffle-lines"
        flags += " --threshold=0.5 --checkpoint=mine.npz"
        self.succeed("text.txt", *flags.split())  # train may be left out
        rnn, run, about = load_checkpoint("mine.npz")
        self.assertEqual((rnn.hidden_size, rnn.seq_length, about.seq_length), (6, 7, 7))
        self.assertEqual((rnn.optimizer, rnn.learning_rate), ("sgd", 0.25))
        self.assertEqual((about.batch_size, about.val_fraction), (5, 0.2))
        self.assertTrue(about.shuffle_lines)
        self.assertEqual((run.max_iters, run.eval_interval, run.threshold), (9, 3, 0.5))
        self.assertEqual([row[0] for row in run.history], [0, 3, 6, 9])

    def test_help_without_a_command_lists_the_commands(self):
        for flag in ("-h", "--help"):
            status, out, _ = self.main(flag)
            self.assertEqual(status, 0)
            self.assertRegex(out, r"\{train,resume,sample,test\}")

    def test_help_names_the_defaults_that_are_used(self):
        for command in ("train", "sample"):
            defaults = vars(char_rnn.parse([command]))
            out = self.main(command, "--help")[1]
            found = dict(
                re.findall(r"--([a-z-]+) (?:(?!--)[^()])*\(([\d.]+)\)", " ".join(out.split()))
            )
            self.assertGreater(len(found), 1)
            for flag, number in found.items():
                self.assertEqual(float(number), defaults[flag.replace("-", "_")], flag)

    def test_a_seed_repeats_a_run_and_another_gives_another(self):
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            self.train("--max-iters=5", f"--seed={seed}", f"--checkpoint={name}.npz")
        self.assertEqual(self.contents("a.npz"), self.contents("b.npz"))
        self.assertNotEqual(self.contents("a.npz"), self.contents("c.npz"))

    def test_a_threshold_ends_a_run_on_the_command_line(self):
        self.write("text.txt", "hello " * 400)
        self.train("--threshold=1")
        _, run, _ = load_checkpoint("char_rnn.npz")
        self.assertTrue(run.iteration < 2500 and run.smooth_loss <= 1)

    def test_the_closing_lines_are_of_what_is_scored_by_the_best_weights_beside_counting(self):
        best, last, about = self.overfitted()
        reader = DataReader("text.txt", 8, 4, 0.5)
        out = self.succeed("resume", "char_rnn.npz")
        nats = best.evaluate(reader.val_ids)
        self.assertNotEqual(nats, last.evaluate(reader.val_ids))
        perplexity = f"perplexity {math.exp(nats):.2f},\n"
        self.assertIn(f"validation loss {nats:.4f} nats per character, {perplexity}", out)
        _, run, _ = load_checkpoint("char_rnn.npz")
        weights = f"with the weights of iteration {run.best_iteration:,};\n"
        self.assertIn(f"on 1,499 of the characters held out, {weights}", out)
        counted = "{:.3f}, {:.3f} and {:.3f}\n".format(
            *counting(reader.train_ids, reader.val_ids, best.vocab_size)
        )
        self.assertIn(f"counting what follows the last 1, 2 and 3 characters: {counted}", out)
        self.assertIn(best.predict(about, "\n", 300, seed=0), out)
        self.assertNotIn("no better", out)
        self.assertRegex(out, r"for more text:\npython .* sample char_rnn.npz\n\Z")

    def test_the_closing_figures_are_of_more_than_a_row_reads_and_of_the_same_characters(self):
        self.write("text.txt", SHORT * 60)
        out = self.train("--val-fraction=0.8", "--max-iters=1")
        rnn, run, _ = load_checkpoint("char_rnn.npz")
        rnn.use(run.best)
        reader = DataReader("text.txt", 8, 4, 0.8)
        nats = rnn.evaluate(reader.val_ids)
        self.assertIn(f"validation loss {nats:.4f} nats per character", out)
        scored = 143_999 // 64 * 64  # what follows others in 64 equal streams
        self.assertIn(f"on {scored:,} of the characters held out", out)
        counted = counting(reader.train_ids, reader.val_ids[: scored + 1], rnn.vocab_size)
        self.assertIn(f"characters: {counted[0]:.3f}, {counted[1]:.3f} and", out)
        self.assertNotIn("validation loss", self.train("--val-fraction=0", "--max-iters=1"))

    def test_where_counting_pairs_or_guessing_does_as_well_it_is_said_and_last_is_offered(self):
        remark = "That is no better than guessing, or counting pairs of characters"
        self.write("text.txt", CATS)
        out = self.train("--max-iters=300")
        self.assertIn(remark, out)
        self.assertRegex(out, r"for more text:\npython .* sample char_rnn.npz --last\n\Z")
        rnn, run, about = load_checkpoint("char_rnn.npz")
        self.assertEqual(run.best_iteration, 0)
        last = rnn.predict(about, "c", 60, temperature=0)
        self.assertIn("cats purr cats purr ", last)
        flags = ["sample", "char_rnn.npz", "--start=c", "--temperature=0", "--length=60"]
        self.assertIn("cats purr cats purr ", self.succeed(*flags, "--last"))
        self.assertNotIn("cats", self.succeed(*flags))
        self.write("cats.txt", CATS[:240])
        ids = encode(CATS[:240], about.chars)
        flags = ["test", "char_rnn.npz", "cats.txt"]
        self.assertIn(f"{rnn.evaluate(ids):.4f} nats", self.succeed(*flags, "--last"))
        rnn.use(run.best)
        self.assertIn(f"{rnn.evaluate(ids):.4f} nats", self.succeed(*flags))

    def test_the_remark_is_by_guessing_where_nothing_is_held_out_or_counting_is_worse(self):
        remark = "That is no better than guessing, or counting pairs of characters"
        self.assertNotIn(remark, self.train("--val-fraction=0", "--max-iters=300"))
        flags = ["--val-fraction=0", "--optimizer=sgd", "--learning-rate=1000", "--max-iters=100"]
        self.assertIn(remark, self.train(*flags))
        self.write("text.txt", "ab" * 500 + "ba" * 10 + "aabb" * 20)  # where pairs mislead
        reader = DataReader("text.txt", 8, 4)
        self.assertGreater(counting(reader.train_ids, reader.val_ids, 2)[0], math.log(2))
        self.assertIn(remark, self.train("--max-iters=100"))

    def test_sample_writes_with_the_best_weights_of_the_newest_checkpoint(self):
        best, last, about = self.overfitted()
        text = best.predict(about, "\n", 60, temperature=0)[1:]
        self.assertNotEqual(last.predict(about, "\n", 60, temperature=0)[1:], text)
        flags = ["sample", "--temperature=0", "--length=60"]
        self.assertEqual(self.succeed(*flags, told="from char_rnn.npz\n"), text + "\n")
        os.utime("char_rnn.npz", (1, 1))
        self.train("--max-iters=1")
        self.assertNotEqual(self.succeed(*flags, told="from char_rnn-2.npz\n"), text + "\n")
        self.assertIn(
            "saving in char_rnn-2.npz\n", self.succeed("resume", told="from char_rnn-2.npz\n")
        )

    def test_sample_has_a_length_a_start_a_temperature_and_a_seed(self):
        self.train("--max-iters=200")
        flags = ["sample", "char_rnn.npz"]
        seeded = [self.succeed(*flags, f"--seed={seed}") for seed in (1, 1, 2)]
        self.assertTrue(seeded[0] == seeded[1] != seeded[2])
        self.assertEqual(len(seeded[0]), 401)
        self.assertNotEqual(self.succeed(*flags), self.succeed(*flags))
        rnn, run, about = load_checkpoint("char_rnn.npz")
        rnn.use(run.best)
        expected = rnn.predict(about, "\nThe hen", 50, temperature=0.3, seed=4)[1:]
        flags += ["--start=The hen", "--length=50", "--seed=4"]
        self.assertEqual(self.succeed(*flags, "--temperature=0.3"), f"{expected}\n")
        expected = rnn.predict(about, "\nThe hen", 50, seed=4)[1:]
        self.assertEqual(self.succeed(*flags), f"{expected}\n")
        self.assertEqual(rnn.predict(about, "\nThe hen", 50, temperature=0.7, seed=4)[1:], expected)

    def test_sample_shows_each_character_as_it_is_drawn(self):
        self.train("--max-iters=1")
        out = io.StringIO()
        shown = []
        with (
            contextlib.redirect_stdout(out),
            mock.patch.object(out, "flush", lambda: shown.append(len(out.getvalue()))),
        ):
            char_rnn.main(["sample", "char_rnn.npz", "--start=The", "--length=9"])
        self.assertEqual(shown, list(range(4, 13)))

    def test_nothing_is_written_before_a_start_is_checked(self):
        self.train("--max-iters=1")
        self.refuse("never saw 'É'", "sample", "char_rnn.npz", "--start=Élan")

    def test_sample_lines_writes_whole_lines_and_nothing_else(self):
        self.write("text.txt", "".join(f"{word}\n" for word in SHORT.split()))
        self.train("--max-iters=300")
        flags = ["sample", "char_rnn.npz", "--seed=4"]
        status, out, err = self.real(*flags, "--lines=20")
        self.assertEqual((status, err, out.count("\n"), out[-1]), (0, "", 20, "\n"))
        self.assertGreater(len(set(out.split("\n"))), 10)  # each is drawn anew
        short = self.succeed(*flags, "--lines=20", "--length=2")
        self.assertEqual(max(map(len, short.split("\n"))), 2)
        out = self.succeed(*flags, "--lines=5", "--start=The")
        self.assertTrue(all(line.startswith("The") for line in out.splitlines()))
        rnn, run, about = load_checkpoint("char_rnn.npz")
        rnn.use(run.best)
        first = rnn.predict(about, "\n", 400, temperature=0).split("\n")[1]
        out = self.succeed("sample", "char_rnn.npz", "--lines=2", "--temperature=0")
        self.assertEqual(out, f"{first}\n" * 2)  # each from a newline and a zero state

    def test_test_scores_a_text_and_says_what_the_model_has_seen(self):
        self.train("--max-iters=50")
        rnn, run, about = load_checkpoint("char_rnn.npz")
        rnn.use(run.best)
        cow = "The cow said to the owl\n\nthat it was late."
        told = "left out, as the model never saw them: 'ö' '☂'\n"
        self.write("cow.txt", cow.replace("a", "aö☂"))
        nats = rnn.evaluate(encode(cow, about.chars))
        out = self.succeed("test", "char_rnn.npz", "cow.txt", told=told)
        self.assertIn(f"{nats:.4f} nats ({nats / math.log(2):.4f} bits) per character\n", out)
        self.assertIn(
            f"perplexity {math.exp(nats):.2f}; guessing would have {rnn.vocab_size}\n", out
        )
        seen = "the model was trained on this text\n"
        self.succeed("test", "char_rnn.npz", "text.txt", told=seen)

    def test_test_lines_gives_each_line_as_it_stands_its_loss_and_its_unknown_characters(self):
        told = "nats per character, characters never seen and left out, line\n"
        for text in (SHORT, SHORT.replace("\n", " ")):  # a model that knows newlines, and one not
            self.write("text.txt", text)
            self.train("--max-iters=50", "--checkpoint=lines.npz")
            rnn, run, about = load_checkpoint("lines.npz")
            rnn.use(run.best)
            start = "\n" if "\n" in text else " "
            end = "\n" if "\n" in text else ""
            expected = ""
            for line, known in (("The cow.%%%%", "The cow."), ("  an owl", "  an owl"), ("", "")):
                ids = encode(start + known + end, about.chars)
                nats = "-"
                if len(ids) > 1:
                    y_pred = rnn.forward(ids[:-1], np.zeros(16))[1]
                    nats = f"{rnn.loss(y_pred, ids[1:]) / (len(ids) - 1):.3f}"
                expected += f"{nats:>7}{len(line) - len(known):5}  {line}\n"
            self.write("cow.txt", "The cow.%%%%\n  an owl\n\n")
            self.assertEqual(
                self.succeed("test", "lines.npz", "cow.txt", "--lines", told=told), expected
            )
            Path("lines.npz").unlink()

    def test_test_uses_the_best_weights(self):
        best, last, about = self.overfitted()
        self.write("other.txt", SHORT[:500])
        nats, of_last = (rnn.evaluate(encode(SHORT[:500], about.chars)) for rnn in (best, last))
        out = self.succeed("test", "char_rnn.npz", "other.txt")
        self.assertIn(f"{nats:.4f} nats", out)
        self.assertNotEqual(nats, of_last)

    def test_a_run_with_other_settings_stopped_twice_and_moved_twice_resumes_to_the_same_bits(self):
        self.write("text.txt", "".join(f"{word} {word}\n" for word in SHORT.split()))
        flags = "--hidden-size=9 --seq-length=5 --batch-size=3 --optimizer=adagrad --seed=3"
        flags += " --learning-rate=0.2 --max-iters=3000 --eval-interval=70 --val-fraction=0.3"
        flags = ["train", "text.txt", *flags.split(), "--threshold=2.6", "--shuffle-lines"]
        self.succeed(*flags, "--checkpoint=straight.npz")
        run = load_checkpoint("straight.npz")[1]
        self.assertTrue(300 < run.iteration < 3000 and run.smooth_loss <= 2.6)
        moves = (("text.txt", "second.txt", 100), ("second.txt", "third.txt", 290))
        command = [*flags, "--checkpoint=run.npz"]
        seconds = [0]
        for name, other, iteration in moves:
            self.stopped(iteration, *command)
            seconds.append(load_checkpoint("run.npz")[1].seconds)
            Path(name).rename(other)
            command = ["resume", "run.npz", other]
        self.succeed(*command)
        self.assertEqual(self.contents("run.npz"), self.contents("straight.npz"))
        rnn, run, about = load_checkpoint("run.npz")
        self.assertEqual(about.path, "third.txt")
        self.assertTrue(seconds[0] < seconds[1] < seconds[2] < run.seconds)

    def stopped(self, iteration, *args):
        """Run a command and press Ctrl-C in the iteration after one."""

        def report(rnn, reader, run, print_progress=char_rnn.print_progress):
            print_progress(rnn, reader, run)
            if run.iteration > iteration:
                raise KeyboardInterrupt

        with mock.patch.object(char_rnn, "print_progress", report):
            status, out, _ = self.main(*args)
        self.assertEqual(status, 130)
        self.assertIn("to go on:  python", out)

    def test_init_from_takes_weights_and_characters_and_all_else_from_the_flags(self):
        self.train("--max-iters=150", "--learning-rate=0.02")
        best, run, about = load_checkpoint("char_rnn.npz")
        best.use(run.best)
        text = self.write("second.txt", SHORT[::-1])
        for optimizer in ("adam", "adagrad"):
            flags = f"{text} --init-from=char_rnn.npz --checkpoint={optimizer}.npz --max-iters=30"
            flags += f" --seq-length=5 --batch-size=3 --optimizer={optimizer} --learning-rate=0.07"
            self.succeed(*flags.split(), "--val-fraction=0.2")
            reader = DataReader(text, 5, 3, 0.2, about.chars)
            rnn = RNN(16, reader.vocab_size, 5, 0.07, optimizer)
            rnn.use(best.parameters())
            run = rnn.train(reader, max_iters=30, report=silent)
            save_checkpoint("python.npz", rnn, run, reader, replace=True)
            self.assertEqual(self.contents(f"{optimizer}.npz"), self.contents("python.npz"))

    def test_init_from_goes_on_with_another_text_from_the_best_weights(self):
        best, last, about = self.overfitted()
        text = self.write("second.txt", SHORT[::-1])
        self.succeed(text, *SMALL[1:], "--init-from=char_rnn.npz", "--max-iters=1")
        _, run, second = load_checkpoint("char_rnn-2.npz")
        ids = DataReader(text, 8, 4, chars=about.chars).val_ids
        self.assertEqual(run.history[0][2], best.evaluate(ids))
        self.assertNotEqual(run.history[0][2], last.evaluate(ids))
        self.assertEqual((run.iteration, second.chars), (1, about.chars))
        self.write("third.txt", SHORT[:300] + "☂")
        self.refuse("never saw '☂'", "third.txt", "--init-from=char_rnn.npz")
        self.refuse("not allowed", text, "--init-from=char_rnn.npz", "--hidden-size=16")

    def test_resume_reads_the_text_where_it_was_or_where_it_is_now_but_no_other(self):
        self.train("--max-iters=20")
        Path("text.txt").rename("moved.txt")
        self.refuse("text.txt'", "resume", "char_rnn.npz")
        self.succeed("resume", "char_rnn.npz", "moved.txt", "--max-iters=30")
        self.write("moved.txt", SHORT.replace("e", "a"))
        self.refuse("moved.txt is not the text", "resume", "char_rnn.npz", "moved.txt")

    def test_resume_refuses_an_end_that_lies_behind_it(self):
        self.train("--max-iters=20")
        self.refuse("at iteration 20: 5 is too few", "resume", "char_rnn.npz", "--max-iters=5")
        out = self.succeed("resume", "char_rnn.npz", "--max-iters=20")
        self.assertIn("the run has ended at iteration 20, smooth", out)

    def test_save_checkpoint_in_python_takes_a_free_name_too(self):
        reader = DataReader("text.txt", 8, 4)
        rnn = RNN(16, reader.vocab_size, 8, 0.01)
        names = [save_checkpoint("names.npz", rnn, Run(rnn), reader) for _ in range(2)]
        self.assertEqual(names, ["names.npz", "names-2.npz"])
        before = self.files()
        run = Run(rnn, iteration=7)
        self.assertEqual(save_checkpoint("names.npz", rnn, run, reader, replace=True), "names.npz")
        self.assertEqual(load_checkpoint("names.npz")[1].iteration, 7)
        self.assertEqual(self.files().keys(), before.keys())
        self.assertFalse(list(Path().glob("*.tmp")))

    @unittest.skipUnless(find_spec("matplotlib"), "matplotlib is not installed")
    def test_the_plot_shows_the_losses_of_the_run(self):
        from matplotlib.axes import Axes

        with mock.patch.object(Axes, "plot", autospec=True, side_effect=Axes.plot) as plot:
            self.train("--plot=loss.png", "--max-iters=300")
        png = Path("loss.png").read_bytes()
        self.assertEqual(png[:8], b"\x89PNG\r\n\x1a\n")
        self.assertEqual([int.from_bytes(png[i : i + 4], "big") for i in (16, 20)], [800, 500])
        self.assertFalse(Path("loss-2.png").exists())  # it is drawn anew, and not beside it
        refused = "is there, and no picture of this run"
        self.refuse(refused, *self.flags, "--plot=loss.png")
        _, run, _ = load_checkpoint("char_rnn.npz")
        train, val = (call.args[1:3] for call in plot.call_args_list[-2:])
        self.assertEqual(plot.call_args_list[-3].args[1], run.losses)
        np.testing.assert_equal([*zip(train[0], train[1], val[1])], [*map(tuple, run.history)])
        for ending, start in ((".svg", b"<?xml"), (".pdf", b"%PDF")):
            self.train(f"--plot=loss{ending}", "--max-iters=1")
            self.assertTrue(Path(f"loss{ending}").read_bytes().startswith(start))
        svg = Path("loss.svg").read_text(encoding="utf-8")
        for label in ("each iteration", "training", "validation", "iteration", "loss (nats per"):
            self.assertIn(f"<!-- {label}", svg)
        labels = [call.kwargs["label"][:8] for call in plot.call_args_list[-3:]]
        self.assertEqual(labels, ["each ite", "training", "validati"])

    @unittest.skipUnless(find_spec("matplotlib"), "matplotlib is not installed")
    def test_a_plot_that_cannot_be_or_would_cost_a_file_is_refused_before_training(self):
        self.write("notes.svg", SHORT)
        refused = "is there, and no picture of this run"
        self.refuse(refused, "train", "notes.svg", "--plot=notes.svg")
        self.train("--max-iters=1", "--checkpoint=a.png", "--plot=b.png")
        self.refuse(refused, "resume", "a.png", "--plot=a.png")
        self.refuse(refused, "resume", "a.png", "--plot=notes.svg")
        Path("elsewhere").mkdir()
        picture = self.write("elsewhere/b.png", "another's")
        self.refuse(refused, "resume", "a.png", f"--plot={picture}")
        self.write("b.png", "to be drawn again")
        self.succeed("resume", "a.png", "--plot=b.png", "--max-iters=2")
        self.assertEqual(Path("b.png").read_bytes()[:4], b"\x89PNG")
        Path("dangling.png").symlink_to("nowhere.png")
        self.refuse(refused, "resume", "a.png", "--plot=dangling.png")
        self.refuse("nowhere/a.png", *self.flags, "--plot=nowhere/a.png")

    @unittest.skipUnless(find_spec("matplotlib"), "matplotlib is not installed")
    def test_a_plot_of_an_ending_that_matplotlib_does_not_know_is_refused(self):
        self.refuse("Format 'txt' is not supported", *self.flags, "--plot=thesis.txt")

    def test_a_plot_without_matplotlib_is_refused(self):
        with mock.patch.dict(sys.modules, {"matplotlib.figure": None}):
            self.refuse("pip install matplotlib", *self.flags, "--plot=a.png")

    def test_sample_lines_does_not_count_empty_ones(self):
        self.write("text.txt", "".join(f"{word} the fox\n\n" for word in SHORT.split()))
        self.train("--max-iters=400")
        out = self.succeed("sample", "char_rnn.npz", "--lines=20", "--seed=1")
        self.assertEqual((out.count("\n"), out.count("\n\n")), (20, 0))
        about = load_checkpoint("char_rnn.npz")[2]
        rnn, run, _ = load_checkpoint("char_rnn.npz")
        rnn.use(run.best)
        text = rnn.predict(about, "\n", 200, temperature=0)
        self.assertTrue(text.startswith("\n\n"))  # without this there would be empty ones
        out = self.succeed("sample", "char_rnn.npz", "--lines=2", "--temperature=0")
        self.assertEqual(out, f"{text.strip().splitlines()[0]}\n" * 2)
        self.assertEqual(self.succeed("sample", "char_rnn.npz", "--lines=2", "--length=0"), "\n\n")

    def test_weights_that_explode_with_nothing_held_out_are_told_in_a_line(self):
        flags = ["--optimizer=sgd", "--learning-rate=1e38", "--val-fraction=0", "--max-iters=1"]
        status, _, err = self.main(*self.flags, *flags)
        self.assertEqual(status, 2)
        self.assertEqual(err.count("\n"), 1)
        self.assertIn("the weights are no finite numbers: try a lower learning rate", err)

    def test_names_in_alphabetical_order_are_told_to_be_shuffled(self):
        words = {re.sub("[^a-z]", "", word.lower()) for word in Path(FABLES).read_text().split()}
        remark = "\nWhat is held out is unlike the rest of the text: try --shuffle-lines.\n"
        for names in (sorted(words), sorted(map(str.capitalize, words))):
            self.write("text.txt", "\n".join(names) + "\n")
            self.assertIn(remark, self.train("--max-iters=9"))
            self.assertNotIn(remark, self.train("--max-iters=9", "--shuffle-lines"))

    def test_every_mistake_is_told_in_a_line_and_changes_nothing(self):
        self.train("--max-iters=1")
        self.write("one.txt", "T")
        self.write("latin.txt", b"eins\nzwei\ndrei f\xfcnf")
        self.write("wide.txt", "\ufefftext".encode("utf-16-be"))
        self.write("narrow.txt", "text".encode("utf-16-le"))
        small = f"train text.txt {' '.join(SMALL)}"
        for saying, *commands in (
            ("none.txt", "train none.txt", "sample none.txt", "resume none.txt", "none.txt"),
            ("directory", "train .", "sample ."),
            ("needs more than 16 characters, 2", "train one.txt", f"train {os.devnull}"),
            ("nothing to predict", "test char_rnn.npz one.txt"),
            ("latin.txt is not UTF-8 text: perhaps it is UTF-16 or cp1252", "train latin.txt"),
            ("byte 0xfc in position 16", "train latin.txt"),
            ("wide.txt is not UTF-8 text: perhaps", "train wide.txt"),
            ("(it has zero bytes)", "train narrow.txt"),
            ("invalid positive_int value", "--seq-length=-3", "--max-iters=0", "--hidden-size=ten"),
            ("invalid positive_int value", "--eval-interval=0", "--batch-size=0"),
            ("invalid positive_int value", "sample --lines=0", "resume --max-iters=0"),
            ("invalid non_negative_int", "--seed=-1", "sample --length=-1", "sample --seed=x"),
            ("val_fraction is", "--val-fraction=1", "--val-fraction=10", "--val-fraction=nan"),
            ("argument", "--optimizer=rmsprop", "--hiden-size=3", "resume --seed=1"),
            ("llocate", "--hidden-size=1000000000"),
            ("nowhere", f"{small} --checkpoint=nowhere/char_rnn.npz"),
            ("text.txt is damaged, or no checkpoint", "sample text.txt", "resume text.txt"),
            ("the model never saw 'é' '☂'", "sample char_rnn.npz --start=é☂"),
            ("argument --temperature", "sample char_rnn.npz --temperature=hot"),
            ("temperature must be", "sample char_rnn.npz --temperature=nan"),
            ("temperature must be", "sample char_rnn.npz --temperature=-0.5"),
            ("positive number", "--learning-rate=nan", "--learning-rate=0"),
        ):
            for command in commands:
                with self.subTest(command):
                    self.refuse(saying, *command.split())
        Path("char_rnn.npz").unlink()
        self.refuse("train first", "sample")

    def test_a_run_that_diverges_names_the_rate_and_costs_no_older_file(self):
        self.train("--max-iters=1")
        before = self.files()
        for interval in ("1", "500"):  # the row or the loss of the next iteration tells it
            flags = ["--learning-rate=1e38", "--optimizer=sgd", f"--eval-interval={interval}"]
            status, _, err = self.main(*self.flags, *flags)
            self.assertEqual(status, 2)
            self.assertRegex(err, r"\Achar_rnn.py: error: .*try a .*learning rate.*\n\Z")
        self.assertEqual(before.items() - self.files().items(), set())


class TestCheckpoint(InFolder):
    def setUp(self):
        super().setUp()
        self.train("--max-iters=20")

    def test_a_damaged_checkpoint_is_refused_or_gives_the_very_same_values(self):
        whole = Path("char_rnn.npz").read_bytes()
        same = self.contents("char_rnn.npz")
        shape = whole.index(b"(4, 16)") + 5  # of ba: as "(4, 10)" it could be read as fewer
        damaged = [b"", b"PK" + bytes(1000), self.rng.bytes(5000), whole[:-1]]
        damaged.append(whole[:shape] + b"0" + whole[shape + 1 :])
        for a, b, bit in self.rng.integers(0, (len(whole), len(whole), 8), (100, 3)):
            moved = whole[b : b + 40]
            flipped = bytes([whole[a] ^ 1 << bit])
            damaged.append(whole[:a])
            damaged.append(whole[:a] + moved + whole[a + 40 :])
            damaged.append(whole[:a] + flipped + whole[a + 1 :])
        refused = 0
        for content in damaged:
            try:
                self.assertEqual(self.contents(self.write("damaged.npz", content)), same)
            except UserError as error:
                self.assertIn("damaged.npz is damaged, or no checkpoint", str(error))
                refused += 1
        self.assertGreater(refused, 200)

    def test_nothing_in_a_checkpoint_is_run(self):
        trap = np.array([Trap()], dtype=object)
        with np.load("char_rnn.npz") as file:
            np.savez("forged.npz", **{**file, "Wax": trap})
        self.refuse("forged.npz is damaged, or no checkpoint", "sample", "forged.npz")
        self.assertFalse(Path("witness").exists())
        with np.load("forged.npz", allow_pickle=True) as file:
            file["Wax"]  # the trap does work where pickles are allowed
        self.assertTrue(Path("witness").exists())

    def test_a_file_that_holds_other_things_is_refused(self):
        with np.load("char_rnn.npz") as file:
            whole = dict(file)
        for text in (json.dumps({"path": "text.txt"}), json.dumps([{}]), "", "nothing"):
            np.savez("old.npz", **whole | {"about": text})
            for command in ("sample", "resume"):
                self.refuse(
                    "old.npz is damaged, or no checkpoint of char_rnn.py", command, "old.npz"
                )
        np.savez("other.npz", Wax=np.zeros((4, 2)))
        np.save("other.npy", np.zeros((4, 2)))
        for other in ("other.npz", "other.npy"):
            self.refuse(f"{other} is damaged, or no checkpoint", "sample", other)


class Trap:
    """What a forged pickle can do: it creates a file when it is loaded."""

    def __reduce__(self):
        return (Path.touch, (Path("witness"),))


class TestReadme(InFolder):
    def test_python_snippets_about_char_rnn_run_and_print_what_stands_below_them(self):
        readme = (HERE / "README.md").read_text(encoding="utf-8")
        found = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", readme, re.DOTALL)
        alone = [part for part in found if "char_rnn" in part[0] and part not in snippets()]
        self.assertTrue(alone)
        self.write("char_rnn.py", Path(SCRIPT).read_bytes())
        Path("data").symlink_to(HERE / "data")
        for code, printed in alone:
            status, out, err = self.real(code, script=("-c",))
            self.assertEqual((status, err), (0, ""))
            self.assertIn(printed, (out, ""))


class TestLook(InFolder):
    """README's "A look inside" on a small float64 network, against plain loops over one text."""

    def setUp(self):
        super().setUp()
        text = SHORT[:2500] + "0123456789" * 50  # an end unlike the rest: the best come early
        reader = self.reader(text, 8, 4, val_fraction=0.3)
        self.rnn = RNN(16, reader.vocab_size, 8, dtype=np.float64)
        self.rnn.Wax /= 10  # so that something is left of the gradients after 16 steps
        run = self.rnn.train(reader, max_iters=600, report=silent)
        self.assertLess(run.best_iteration, 600)
        save_checkpoint("char_rnn.npz", self.rnn, run, reader)
        self.rnn.use(run.best)
        self.text = text[-900:]
        self.ids = [reader.chars.index(char) for char in self.text]
        self.pieces = [self.ids[i : i + 40] for i in range(0, 880, 40)]

    def looked(self):
        """What the snippets define, and what each of them prints."""
        names = {}
        printed = []
        for code, _ in snippets():
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(code, names)
            printed.append(out.getvalue())
        return names, printed

    def step(self, a, ix):
        """The next state and, before its tanh, n, of one sequence."""
        n = self.rnn.Waa @ a + self.rnn.Wax[:, ix] + self.rnn.ba
        return np.tanh(n), n

    def predicted(self, ids):
        """The probabilities of what comes after a sequence."""
        a = np.zeros(16)
        for ix in ids:
            a, _ = self.step(a, ix)
        exp = np.exp(self.rnn.Wya @ a + self.rnn.by)
        return exp / exp.sum()

    def test_the_snippets_take_the_best_weights_and_the_held_out_text(self):
        names, _ = self.looked()
        np.testing.assert_equal(names["rnn"].parameters(), self.rnn.parameters())
        np.testing.assert_array_equal(names["ids"].T, self.pieces)
        self.assertEqual("".join(names["text"]), self.text)

    def test_forgetting_is_the_divergence_after_one_character_is_changed(self):
        names, printed = self.looked()
        pairs = re.findall(r"(\d+): (\S+)", printed[0])
        self.assertEqual([int(k) for k, _ in pairs], [0, 1, 2, 3, 5, 8, 12, 20])
        for k, shown in pairs:
            place = 39 - int(k)
            nats = 0
            for b, piece in enumerate(self.pieces):
                changed = [*piece]
                changed[place] = self.pieces[b - 1][place]
                for p, q in zip(self.predicted(piece), self.predicted(changed)):
                    nats += p * math.log(p / q)
            found = names["forgetting"](names["rnn"], names["ids"], int(k))
            self.assertAlmostEqual(found, nats / len(self.pieces), places=12)
            self.assertEqual(shown, f"{found:.4f}")

    def test_forgetting_serves_a_network_with_another_state(self):
        names, _ = self.looked()
        lstm = LSTM(6, self.rnn.vocab_size, 8, dtype=np.float64)
        pieces = np.array(self.pieces).T
        changed = pieces.copy()
        changed[-3] = [row[-3] for row in (self.pieces[-1], *self.pieces[:-1])]
        p, q = (lstm.forward(ids, np.zeros((22, 12)))[1][-1] for ids in (pieces, changed))
        found = names["forgetting"](lstm, names["ids"], 2)
        self.assertAlmostEqual(found, (p * np.log(p / q)).sum() / 22, places=12)

    def loss_with(self, piece, place, unit, more):
        """The loss of the last character of a piece, with more in n of one unit at one place."""
        a = np.zeros(16)
        for i, ix in enumerate(piece[:-1]):
            a, n = self.step(a, ix)
            if i == place:
                a = np.tanh(n + more * np.eye(16)[unit])
        exp = np.exp(self.rnn.Wya @ a + self.rnn.by)
        return -math.log(exp[piece[-1]] / exp.sum())

    def size_back(self, k):
        """The mean size of dL/dn, k steps before the last, by central differences."""
        total = 0
        for piece in self.pieces:
            squares = 0
            for unit in range(16):
                plus, minus = (self.loss_with(piece, 38 - k, unit, e) for e in (1e-5, -1e-5))
                squares += ((plus - minus) / 2e-5) ** 2
            total += math.sqrt(squares)
        return total / len(self.pieces)

    def test_backwards_is_the_size_of_central_differences_of_one_loss(self):
        names, printed = self.looked()
        found = names["backwards"](names["rnn"], names["ids"])
        self.assertEqual(len(found), 39)
        last = self.size_back(0)
        for k in (0, 1, 3, 8):
            self.assertAlmostEqual(found[k] / (self.size_back(k) / last), 1, places=6)
        new = RNN(16, self.rnn.vocab_size, 8)
        for network, line in zip((names["rnn"], new), printed[1].splitlines(), strict=True):
            expected = names["backwards"](network, names["ids"])
            self.assertEqual(line.split(), [str(expected[k].round(3)) for k in (1, 3, 8, 16)])

    def test_backwards_shows_gradients_that_grow_as_well(self):
        names, _ = self.looked()
        self.rnn.Wax /= 10
        self.rnn.Waa *= 2
        found = names["backwards"](self.rnn, names["ids"])
        sizes = [self.size_back(k) for k in (0, 2)]
        self.assertAlmostEqual(found[2] / (sizes[1] / sizes[0]), 1, places=6)
        self.assertGreater(found[2], 1.1)

    def test_the_best_unit_is_the_one_with_the_largest_correlation_of_either_sign(self):
        names, printed = self.looked()
        a = np.zeros(16)
        states = []
        for ix in self.ids:
            a, _ = self.step(a, ix)
            states.append(a)
        letters, capitals, quoted = [], [], []
        for i, char in enumerate(self.text):
            before = self.text[: i + 1]
            letters.append(len(re.search(r"[A-Za-z]*\Z", before)[0]))
            capitals.append("A" <= char <= "Z")
            quoted.append(before.count('"') % 2)
        found = re.findall(r"unit (\d+): correlation (\S+);", printed[2])
        for (unit, r), values in zip(found, (letters, capitals, quoted), strict=True):
            found = [statistics.correlation(unit, values) for unit in zip(*states)]
            self.assertEqual(abs(found[int(unit)]), max(map(abs, found)))
            self.assertAlmostEqual(found[int(unit)], float(r), delta=0.00501)

    def test_what_stands_below_the_snippets_has_the_form_of_what_they_print(self):
        _, printed = self.looked()
        for (_, below), out in zip(snippets(), printed, strict=True):
            forms = [re.sub(r"-?[\d.]+", "#", text).split() for text in (below, out)]
            self.assertEqual(*forms)

    def test_look_prints_the_snippets_and_what_a_gru_of_as_many_iterations_forgets(self):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            look()
        names, printed = self.looked()
        self.assertTrue(out.getvalue().startswith("\n".join(printed)))
        reader = names["reader"]
        gru = GRU(16, reader.vocab_size, 8)
        run = gru.train(reader, max_iters=600, report=silent)
        self.assertLess(run.best_iteration, 600)
        gru.use(run.best)
        pairs = re.findall(r"(\d+): (\S+)", out.getvalue().splitlines()[-1])
        self.assertEqual(len(pairs), 8)
        for k, shown in pairs:
            nats = names["forgetting"](gru, names["ids"], int(k))
            self.assertEqual(shown, f"{nats:.4f}")

    def test_look_without_a_checkpoint_or_matplotlib_says_so_in_a_line(self):
        told = self.assertRaisesRegex(SystemExit, "pip install matplotlib")
        with mock.patch.dict(globals(), {"find_spec": lambda name: None}), told:
            look("inside.png")
        with (
            mock.patch.dict(globals(), {"find_spec": lambda name: True}),
            self.assertRaisesRegex(SystemExit, "text.txt is there: name another file"),
        ):
            look("text.txt")
        Path("char_rnn.npz").unlink()
        with self.assertRaisesRegex(SystemExit, "there is no char_rnn.npz here"):
            look()

    @unittest.skipUnless(find_spec("matplotlib"), "matplotlib is not installed")
    def test_the_picture_shows_what_the_functions_give(self):
        from matplotlib.figure import Figure

        names, _ = self.looked()
        gru = GRU(16, self.rnn.vocab_size, 8)
        spy = {"autospec": True, "side_effect": Figure.savefig}
        with mock.patch.object(Figure, "savefig", **spy) as save:
            picture("inside.png", gru, **names)
        self.assertEqual(Path("inside.png").read_bytes()[:8], b"\x89PNG\r\n\x1a\n")
        left, right, strip = save.call_args.args[0].axes
        curves = {line.get_label(): line.get_ydata() for line in (*left.lines, *right.lines)}
        rnn, ids = names["rnn"], names["ids"]
        for network, label in ((rnn, "trained"), (RNN(16, rnn.vocab_size, 8), "not trained")):
            expected = names["backwards"](network, ids)[:21]
            np.testing.assert_array_equal(curves[label], expected)
        for network, label in ((rnn, "this RNN"), (gru, "a GRU")):
            expected = [names["forgetting"](network, ids, k) for k in range(21)]
            np.testing.assert_array_equal(curves[label], expected)
        shown = "".join(text.get_text() for text in strip.texts)
        self.assertEqual(shown, self.text[:80].replace("\n", "¶"))
        unit = int(re.match(r"unit (\d+)", self.looked()[1][2])[1])
        self.assertIn(f"unit {unit} ", strip.get_title())
        state = np.zeros(16)
        for ix, value in zip(self.ids, strip.images[0].get_array()[0]):
            state, _ = self.step(state, ix)
            self.assertAlmostEqual(value, state[unit], places=12)


class Ours:
    """An iteration of training: from a hidden state and a batch to the next state."""

    def __init__(self, rnn):
        self.rnn = rnn
        self.run = Run(rnn)

    def step(self, a_prev, inputs, targets):
        a, y_pred = self.rnn.forward(inputs, a_prev)
        self.rnn.loss(y_pred, targets)
        self.rnn.update(self.rnn.backward(inputs, a, y_pred, targets), self.run)
        return a[-1]


def speed(rounds=5, seconds=0.7):
    """Print characters per second of training, medians of rounds in which the peers take turns."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # one core for both
    kinds = {"ours": Ours}
    if find_spec("torch"):
        torch.set_num_threads(1)
        kinds["torch"] = InTorch
    print("hidden x steps x streams: characters per second,", " and ".join(kinds), "and the ratio")
    sizes = [(100, 25, 1), (100, 25, 32), (128, 32, 16), (128, 50, 50), (256, 32, 16)]
    for H, T, B in [*sizes, (256, 64, 64)]:
        reader = DataReader(FABLES, T, B)
        batch = reader.next_batch()
        peers = [kind(RNN(H, reader.vocab_size, T, 2e-3)) for kind in kinds.values()]
        rates = np.array(
            [[rate(peer, H, seconds, *batch) for peer in peers] for _ in range(rounds)]
        )
        medians = [f"{median:11,.0f}" for median in np.median(rates, axis=0)]
        ratios = [f"{ratio:7.2f}" for ratio in np.median(rates[:, :1] / rates[:, 1:], axis=0)]
        print(f"{f'{H} x {T} x {B}':14}", *medians, *ratios, flush=True)


def rate(peer, H, seconds, inputs, targets):
    """Characters per second of a peer that trains on one batch again and again."""
    a = peer.step(np.zeros((inputs.shape[1], H), np.float32), inputs, targets)  # warm
    started = time.perf_counter()
    done = 0
    while time.perf_counter() < started + seconds:
        a = peer.step(a, inputs, targets)
        done += inputs.size
    return done / (time.perf_counter() - started)


def snippets():
    """The Python of README's section "A look inside", each part with what stands below it."""
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    _, section = readme.split("\n## A look inside\n")
    section, *_ = section.split("\n## ")
    return re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", section, re.DOTALL)


def look(path=None):
    """Run README's "A look inside" on char_rnn.npz, then on a GRU, and draw both in a picture."""
    if not Path("char_rnn.npz").exists():
        sys.exit("there is no char_rnn.npz here: run python char_rnn.py first")
    if path and not find_spec("matplotlib"):
        sys.exit("a picture needs matplotlib: pip install matplotlib")
    if path and Path(path).exists():
        sys.exit(f"{path} is there: name another file")
    names = {}
    for code, _ in snippets():
        exec(code, names)
        print(flush=True)
    rnn = names["rnn"]
    reader = names["reader"]
    iterations = names["run"].iteration
    print(f"a GRU learns for {iterations:,} iterations: a minute or two", flush=True)
    gru = GRU(rnn.hidden_size, rnn.vocab_size, rnn.seq_length)
    run = gru.train(reader, max_iters=iterations, report=silent)
    gru.use(run.best)
    print(f"validation loss {gru.evaluate(reader.val_ids):.4f}; it forgets")
    for k in (0, 1, 2, 3, 5, 8, 12, 20):
        nats = names["forgetting"](gru, names["ids"], k)
        print(f"{k}: {nats:.4f}", end=" ", flush=True)
    print()
    if path:
        picture(path, gru, **names)


def picture(path, gru, rnn, ids, forgetting, backwards, text, a, letters, **others):
    """Forgetting and vanishing over the steps back, and a text in the colours of a unit."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    top, strip = figure.subfigures(2, height_ratios=(6, 1))
    left, right = top.subplots(1, 2)
    for network, label in ((rnn, "this RNN"), (gru, "a GRU")):
        nats = [forgetting(network, ids, k) for k in range(21)]
        left.plot(nats, "o-", markersize=3, label=label)
    left.set_title("how much one character still matters")
    left.set_ylabel("change of the prediction (nats)")
    new = RNN(rnn.hidden_size, rnn.vocab_size, rnn.seq_length)
    for network, label in ((rnn, "trained"), (new, "not trained")):
        sizes = backwards(network, ids)[:21]
        right.plot(sizes, "o-", markersize=3, label=label)
    right.set_title("how much of the gradient is left")
    right.set_ylabel("size of dL/dn, last step: 1")
    for axes in (left, right):
        axes.set_xlabel("steps back")
        axes.set_yscale("log")
        axes.set_ylim(1e-4)
        axes.legend()
    r = [np.corrcoef(unit, letters[1:])[0, 1] for unit in a[1:].T]
    unit = np.argmax(np.abs(r))
    axes = strip.subplots()
    axes.set_title(f"unit {unit} after each character: blue is -1, red is 1", fontsize="medium")
    axes.set_axis_off()
    colours = {"cmap": "coolwarm", "vmin": -1, "vmax": 1, "alpha": 0.5}
    axes.imshow([a[1:81, unit]], aspect="auto", **colours)
    for i, char in enumerate(text[:80]):
        shown = char.replace("\n", "¶")
        axes.text(i, 0, shown, family="monospace", ha="center", va="center")
    figure.savefig(path)


if __name__ == "__main__":
    if "--speed" in sys.argv:
        speed()
    elif "--look" in sys.argv:
        look(*sys.argv[2:])
    else:
        unittest.main()

# SPDX-License-Identifier: MIT-0
"""What char_rnn.py promises, each test one claim:  python -m unittest test_char_rnn

python test_char_rnn.py --speed  prints its training speed beside torch and JAX, where installed.
"""

import contextlib
import copy
import io
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import time
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
    Mistake,
    Run,
    check_gradients,
    load_checkpoint,
    save_checkpoint,
    softmax,
)

if find_spec("torch"):
    import torch
if "--speed" in sys.argv and find_spec("jax"):
    import jax
    import jax.numpy as jnp

HERE = Path(__file__).resolve().parent
SCRIPT = str(HERE / "char_rnn.py")
FABLES = str(HERE / "data" / "fables.txt")
SHORT = Path(FABLES).read_text(encoding="utf-8")[:3000]
SMALL = ["--hidden-size=16", "--seq-length=8", "--batch-size=4"]  # a model that trains in a blink


def silent(run):
    """A report that prints nothing."""


class InTorch:
    """The same network of torch modules: its parameters by our names, and its loss."""

    def __init__(self, rnn):
        H, V = rnn.hidden_size, rnn.vocab_size
        self.dtype = getattr(torch, rnn.dtype.name)
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


def stop_at_130(run):
    """A report that ends a run early."""
    run.stop = run.iteration == 130


class GRU(RNN):
    """README's exercise: a gate u keeps a part of the state, a_t = u a_{t-1} + (1 - u) c_t."""

    def __init__(self, hidden_size, vocab_size, *args, **options):
        super().__init__(hidden_size, vocab_size, *args, **options)
        other = RNN(hidden_size, vocab_size, *args, **options | {"seed": 1})
        self.Wux = other.Wax
        self.Wua = other.Waa

    def parameters(self):
        return super().parameters() | {"Wux": self.Wux, "Wua": self.Wua}

    def gate_and_candidate(self, x, a_prev):
        u = 1 / (1 + np.exp(-self.Wux.T[x] - a_prev @ self.Wua.T))
        return u, np.tanh(self.Wax.T[x] + a_prev @ self.Waa.T + self.ba)

    def forward(self, inputs, a_prev):
        a = [np.asarray(a_prev, self.dtype)]
        for x in inputs:
            u, c = self.gate_and_candidate(x, a[-1])
            a.append(u * a[-1] + (1 - u) * c)
        a = np.array(a)
        return a, softmax(self.logits(a[1:]))

    def backward(self, inputs, a, y_pred, targets):
        grads = super().backward(inputs, a, y_pred, targets)  # right for Wya and by
        for name in ("Wax", "Waa", "ba", "Wux", "Wua"):
            grads[name] = np.zeros_like(self.parameters()[name])
        from_z = (y_pred - self.one_hot(targets)) / np.size(targets[0]) @ self.Wya
        from_next = np.zeros_like(a[0])
        for t in reversed(range(len(inputs))):
            da = from_z[t] + from_next
            u, c = self.gate_and_candidate(inputs[t], a[t])
            dc = da * (1 - u) * (1 - c**2)
            du = da * (a[t] - c) * u * (1 - u)
            from_next = da * u + dc @ self.Waa + du @ self.Wua
            grads["ba"] += dc.sum(axis=0)
            for d, gate in ((dc, "Wa"), (du, "Wu")):
                grads[f"{gate}x"] += d.T @ self.one_hot(inputs[t])
                grads[f"{gate}a"] += d.T @ a[t]
        return grads


class InFolder(unittest.TestCase):
    """A folder for each test, and the command line in this process (main) or its own (real)."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder.name)
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
        status, _, err = self.main(*args)
        self.assertEqual((status, self.files()), (2, before), (args, err))
        self.assertRegex(err, r"\A(usage: .*\n( .*\n)*)?char_rnn.py( \w+)?: error: .*\n\Z")
        self.assertIn(saying, err.splitlines()[-1])

    def contents(self, path):
        """All that a checkpoint holds, as bytes, but for the seconds that training took."""
        rnn, run, about = load_checkpoint(path)
        run.seconds = about.seconds = 0
        run.history = [(iteration, *losses) for iteration, _, *losses in run.history]
        about.history = about.path = None
        return pickle.dumps((vars(rnn), vars(run), vars(about)))

    def problem(self, H=5, V=7, T=6, B=3):
        """A float64 model with no zero anywhere, a batch, and a hidden state to start from."""
        rnn = RNN(H, V, T, 0.01, dtype=np.float64, seed=2)
        rnn.ba = self.rng.normal(size=H)
        rnn.by = self.rng.normal(size=V)
        shape = (T, B) if B else (T,)  # no B is a single sequence, without that axis
        inputs, targets = self.rng.integers(0, V, (2, *shape))
        return rnn, inputs, targets, self.rng.normal(size=(*shape[1:], H))


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
        self.assertEqual(softmax(x).dtype, np.float32)
        with np.errstate(all="raise", under="ignore"):
            y = softmax([[1e308, -1e300], [-1e308, -1e308]])
        np.testing.assert_array_equal(y, [[1, 0], [0.5, 0.5]])

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

    def test_forward_refuses_all_but_indices_of_characters(self):
        rnn, inputs, _, a_prev = self.problem()
        one_hot = rnn.one_hot(inputs)
        for wrong in (one_hot, one_hot.astype(int), inputs * 1.0, inputs - 7, inputs + 7, 3):
            with self.assertRaisesRegex(ValueError, r"must be indices from 0 to 6, \(T, B\)"):
                rnn.forward(wrong, a_prev)

    def test_gradients_match_central_differences_for_every_parameter(self):
        shapes = [{}, {"T": 1}, {"B": 1}, {"B": None}, {"T": 1, "B": None}, {"H": 1}, {"T": 9}]
        for sizes in shapes:
            rnn, inputs, targets, _ = self.problem(**sizes)
            self.assertLess(check_gradients(rnn, inputs, targets), 1e-6, sizes)

    def test_lists_are_arrays(self):
        rnn, inputs, targets, a_prev = self.problem()
        a, y_pred = rnn.forward(inputs, a_prev)
        np.testing.assert_equal(rnn.forward(inputs.tolist(), a_prev.tolist()), (a, y_pred))
        lists = [array.tolist() for array in (inputs, a, y_pred, targets)]
        self.assertEqual(rnn.loss(*lists[2:]), rnn.loss(y_pred, targets))
        np.testing.assert_equal(rnn.backward(*lists), rnn.backward(inputs, a, y_pred, targets))

    def test_check_gradients_sees_a_mistake_in_each_of_them(self):
        rnn, inputs, targets, _ = self.problem()
        a_prev = np.random.default_rng(0).standard_normal((3, 5))
        grads = rnn.backward(inputs, *rnn.forward(inputs, a_prev), targets)
        with mock.patch.object(rnn, "backward", return_value=grads):
            self.assertLess(check_gradients(rnn, inputs, targets), 1e-6)
            for name, grad in grads.items():
                right = grad.copy()
                grad.flat[-1] *= 1.01
                self.assertGreater(check_gradients(rnn, inputs, targets), 1e-5, name)
                grad[...] = right
        with self.assertRaisesRegex(Mistake, "float64"):
            check_gradients(RNN(5, 7, 6, 0.1), inputs, targets)

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
                if reader.just_started():
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

    def test_sampling_frequencies_match_softmax_by_a_chi_square_bound(self):
        V, n = 6, 3000
        z = np.log([0.05, 0.1, 0.15, 0.2, 0.2, 0.3])
        rnn = RNN(4, V, 5, 0.1)
        rnn.Wax = np.zeros((4, V))
        rnn.Waa = np.zeros((4, 4))
        rnn.by = z  # all draws from one distribution
        for temperature in (0.5, 2.0):
            counts = np.bincount(rnn.sample(np.zeros(4), 0, n, temperature, seed=1), minlength=V)
            expected = n * softmax(z / temperature)
            chi_square = ((counts - expected) ** 2 / expected).sum()
            self.assertTrue(0.1 < chi_square < 20.5)  # 5 degrees of freedom: 99.9 % of samples

    def test_temperature_zero_takes_the_likeliest_character_after_the_whole_start(self):
        reader = self.reader("abcdefgh" * 20, 4)
        rnn = RNN(16, 8, 4, 0.1, seed=5)
        start = text = "abcdefgh" * 100
        for _ in range(20):
            y_pred = rnn.forward(char_rnn.encode(text, reader.chars), np.zeros(16))[1]
            text += reader.chars[y_pred[-1].argmax()]
        for temperature in (0, 1e-320):
            self.assertEqual(rnn.predict(reader, start, 20, temperature), text)

    def test_evaluate_reads_the_whole_text_in_streams_of_at_least_2000_characters(self):
        rnn = RNN(32, 62, 8, 0.01, dtype=np.float64)
        ids = DataReader(FABLES, 8).train_ids
        for length, streams in ((2, 1), (3999, 1), (4001, 2), (12_001, 6)):
            steps = (length - 1) // streams
            nats = []
            for start in range(0, streams * steps, steps):
                text = ids[start : start + steps + 1]
                y_pred = rnn.forward(text[:-1], np.zeros(32))[1]
                nats.append(rnn.loss(y_pred, text[1:]) / steps)
            self.assertAlmostEqual(rnn.evaluate(ids[:length]), np.mean(nats), places=12)

    def test_a_part_of_a_text_is_spread_evenly_over_it(self):
        rnn = RNN(4, 50, 8, 0.01)
        ids = np.repeat(np.arange(50), 2000)
        with mock.patch.object(RNN, "forward", autospec=True, side_effect=RNN.forward) as forward:
            rnn.evaluate(ids, at_most=5000)
        read = np.concatenate([call.args[1].ravel() for call in forward.call_args_list])
        self.assertEqual(len(read), 5000 // 50 * 50)
        self.assertEqual(set(read), set(range(50)))


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

    def test_a_run_in_two_parts_is_the_run_in_one_and_without_it_a_new_one_starts(self):
        reader = DataReader("text.txt", 8, 4)
        whole, parts = (RNN(16, reader.vocab_size, 8, 0.01) for _ in range(2))
        run = whole.train(reader, max_iters=200, report=silent)
        half = parts.train(reader, max_iters=200, report=stop_at_130)
        self.assertEqual(half.iteration, 130)
        half.stop = False
        parts.train(reader, max_iters=200, report=silent, run=half)
        self.assertEqual(run.losses, half.losses)
        np.testing.assert_equal(parts.parameters(), whole.parameters())
        fresh = copy.deepcopy(whole)
        again = whole.train(reader, max_iters=200, report=silent)
        self.assertEqual(fresh.train(reader, max_iters=200, report=silent).losses, again.losses)
        self.assertEqual((again.iteration, len(again.losses)), (200, 200))

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
        run = rnn.train(reader, max_iters=1200, report=lambda run: rows.append(run.history[-1]))
        iterations, seconds, train_losses, val_losses = zip(*run.history)
        self.assertEqual(iterations, (0, 100, 250, 500, 1000, 1200))
        self.assertEqual(len(rows), 1201)  # one call before the first iteration
        self.assertTrue(min(val_losses) < val_losses[-1] == rnn.evaluate(reader.val_ids))
        means = [np.mean(run.losses[start:stop]) for start, stop in pairwise(iterations)]
        np.testing.assert_allclose(train_losses, [math.nan, *means])  # each since the row before
        self.assertTrue(0 < seconds[1] < seconds[2] < seconds[-1] <= run.seconds)
        rnn.use(run.best)
        self.assertEqual(rnn.evaluate(reader.val_ids), min(val_losses))

    def test_a_run_that_only_gets_worse_keeps_the_weights_it_began_with(self):
        reader = DataReader("text.txt", 8, 4)
        rnn = RNN(16, reader.vocab_size, 8, 30.0)
        before = copy.deepcopy(rnn.parameters())
        run = rnn.train(reader, max_iters=5, report=silent)
        np.testing.assert_equal(run.best, before)

    def test_the_loss_that_is_kept_is_for_each_character_also_in_a_shorter_batch(self):
        reader = self.reader("ab" * 21, 8, 2, val_fraction=0)  # 20 steps: batches of 8, 8 and 4
        rnn = RNN(4, 2, 8, 1e-12)  # so slow that every batch costs the same
        losses = rnn.train(reader, max_iters=3, report=silent).losses
        np.testing.assert_allclose(losses, losses[0], rtol=0.2)

    def test_a_threshold_that_is_not_reached_is_said_and_one_that_guessing_reaches_is_refused(self):
        reader = DataReader("text.txt", 8, 4)
        rnn = RNN(16, reader.vocab_size, 8, 0.01)
        for threshold, said in ((2.0, "threshold 2 was not reached"), (0.0, "sample\n")):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                rnn.train(reader, max_iters=3, threshold=threshold)
            self.assertIn(said, out.getvalue())
        self.assertNotIn("threshold", out.getvalue())
        for threshold in (10, -1, math.nan):
            with self.assertRaisesRegex(Mistake, "nats per character: take one below 3.89"):
                rnn.train(reader, threshold=threshold)

    def test_a_gru_by_subclass_is_checked_trained_saved_and_loaded_and_is_no_rnn(self):
        reader = DataReader("text.txt", 8, 4)
        gru = GRU(5, reader.vocab_size, 8, 0.01, dtype=np.float64)
        inputs, targets = reader.next_batch()
        self.assertLess(check_gradients(gru, inputs, targets), 1e-6)
        run = gru.train(reader, max_iters=100, report=silent)
        self.assertLess(run.smooth_loss, math.log(reader.vocab_size))
        save_checkpoint("gru.npz", gru, run, reader)
        loaded, again, about = load_checkpoint("gru.npz", model=GRU)
        self.assertEqual(loaded.predict(about, "T", 40, 0), gru.predict(reader, "T", 40, 0))
        np.testing.assert_equal((again.m, again.best), (run.m, run.best))
        self.refuse("not of a network of class RNN: see Wua, Wux, best_Wua", "sample", "gru.npz")


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
                while not read or not reader.just_started():
                    inputs, targets = reader.next_batch()
                    np.testing.assert_array_equal(targets, inputs + 1)
                    self.assertLessEqual(len(inputs), 5)
                    read.append(inputs)
                columns = np.concatenate(read).T.ravel()  # stream after stream
                np.testing.assert_array_equal(columns, range(len(columns)))
                self.assertLess(trained - 1 - len(columns), streams)
                self.assertEqual(len(read), reader.batches)

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
        with self.assertRaisesRegex(Mistake, r"never saw '\\t' 'é' '語'"):
            self.reader("abc é語\tabc", 2, chars=list("abc "))


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
                printed = re.search("to go on:  python .*char_rnn.py (.*)", out)[1]
                command = printed.split()
                self.assertEqual(command, ["resume", "char_rnn.npz"])
        status, _, err = self.real(*command)
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(self.contents("straight.npz"), self.contents("char_rnn.npz"))

    def test_ctrl_c_ends_after_the_iteration_and_a_second_one_at_once(self):
        run = Run(RNN(4, 5, 6, 0.1))
        self.addCleanup(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
        char_rnn.stop(run, signal.SIGINT, None)
        self.assertTrue(run.stop)
        with self.assertRaises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)

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
        after = self.files()
        self.assertEqual({name: after[name] for name in before}, before)
        self.assertFalse(Path("nowhere.npz").exists())

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
                self.assertRegex(err, rf"\Achar_rnn.py: error: .*{said}.*\n\Z")
            os.chmod(".", 0o755)
            self.assertEqual(self.files(), {**before, "narrow.py": NARROW.encode()})

    def test_a_link_as_checkpoint_stays_a_link_and_its_file_goes_on(self):
        self.train("--max-iters=20", "--checkpoint=real.npz")
        Path("link.npz").symlink_to("real.npz")
        self.succeed("resume", "link.npz", "--max-iters=30")
        self.assertTrue(Path("link.npz").is_symlink())
        self.assertEqual(load_checkpoint("real.npz")[1].iteration, 30)

    def test_a_bug_in_a_copy_keeps_its_traceback(self):
        source = Path(SCRIPT).read_text(encoding="utf-8")
        for line, wrong in (
            ("dz @ self.Wya\n", "dz @ self.Waa\n"),
            ("(1 + math.cos", "('1' + math.cos"),
        ):
            self.assertIn(line, source)
            self.write("copy.py", source.replace(line, wrong, 1))
            status, _, err = self.real(*self.flags, script=("copy.py",))
            self.assertEqual(status, 1)
            self.assertIn("Traceback", err)

    def test_what_goes_to_a_pipe_is_utf_8_and_what_is_no_terminal_has_no_live_line(self):
        text = "лиса и ворона \x1b[31m語\n" * 30
        self.write("text.txt", text)
        env = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
        status, out, err = self.real(*self.flags, "--max-iters=300", env=env)
        self.assertEqual((status, err, "\r" in out), (0, "", False))
        _, out, _ = self.real("sample", "--start", text[:20], "--length=0", env=env)
        self.assertEqual(out, text[:20] + "\n")

    def test_a_terminal_gets_a_live_line_that_rows_replace_and_no_control_characters(self):
        self.write("text.txt", "the fox \x1b[31m and \x07 the owl\n" * 30)
        out = self.on_terminal(*self.flags, "--max-iters=3000")
        live = re.findall(r"( *[\d,]+  loss [\d.]+  [\d,]+ characters/s  \d+ s left *)\r", out)
        self.assertTrue(live and set(map(len, live)) == {70})
        rows = re.findall(r"( *(?:100|250|3,000)   .*)\r\n", out)
        self.assertTrue(len(rows) == 3 and min(map(len, rows)) >= 70)
        self.assertNotRegex(out, "[\x00-\x08\x0b\x0c\x0e-\x1f]")
        out = self.on_terminal("sample", "char_rnn.npz", "--start", "fox \x1b[31m", "--length=0")
        self.assertEqual(out, "fox \N{REPLACEMENT CHARACTER}[31m\r\n")

    def on_terminal(self, *args):
        import pty

        master, terminal = pty.openpty()
        process = self.start(*args, stdout=terminal)
        os.close(terminal)
        chunks = []
        with contextlib.suppress(OSError):  # Linux ends a terminal with an error
            while chunk := os.read(master, 4096):
                chunks.append(chunk)
        os.close(master)
        self.assertEqual((process.wait(), process.stderr.read()), (0, ""))
        return b"".join(chunks).decode()

    def test_head_ends_a_run_in_silence(self):
        process = self.started(*self.flags, "--hidden-size=256", row="0")
        process.stdout.close()  # all that "| head" does when it has seen enough
        self.assertEqual((process.stderr.read(), process.wait()), ("", -signal.SIGPIPE))


class TestCommandLine(InFolder):
    def test_rows_come_at_0_100_250_and_every_interval_and_an_ended_run_is_only_told(self):
        out = self.train("--max-iters=1250", "--eval-interval=400", "--checkpoint=run.npz")
        out += self.succeed("resume", "run.npz", "--max-iters=1300")
        row = r"^( *([\d,]+) +[\d.]+ +(?:-|\d\.\d{3}) +(\d\.\d{3}) +(?:-|\d+ s)  (.+))$"
        lines, iterations, val_losses, samples = zip(*re.findall(row, out, re.MULTILINE))
        numbers = [int(iteration.replace(",", "")) for iteration in iterations]
        self.assertEqual(numbers, [0, 100, 250, 400, 800, 1200, 1250, 1300])
        self.assertTrue(max(map(len, lines)) < 80 and min(map(len, samples)) >= 20)
        _, run, _ = load_checkpoint("run.npz")
        self.assertEqual(val_losses, tuple(f"{row[3]:.3f}" for row in run.history))
        self.assertIn("read 14.7 times in 1,250 iterations", out)  # 85 batches of 4 x 8
        before = self.contents("run.npz")
        self.assertIn("the run has ended at iteration 1,300", self.succeed("resume", "run.npz"))
        self.assertEqual(self.contents("run.npz"), before)

    def test_the_default_run_reads_the_fables_whatever_the_folder_and_however_it_is_started(self):
        Path("link.py").symlink_to(SCRIPT)
        out = self.real("--max-iters=2", script=("link.py",))[1]
        title = "fables.txt, 256 hidden units, 97,598 parameters\n392,631 characters to train on"
        self.assertTrue(out.startswith(title))
        self.assertRegex(
            out, r"validation loss \d\.\d{4} nats.*\non all 43,625 characters held out"
        )
        self.assertEqual(self.real("--help", script=("-OO", SCRIPT))[0], 0)

    def test_every_optimiser_has_its_own_default_rate(self):
        for name, (_, rate) in OPTIMIZERS.items():
            self.train("--max-iters=1", f"--optimizer={name}", f"--checkpoint={name}.npz")
            self.assertEqual(load_checkpoint(f"{name}.npz")[0].learning_rate, rate)
        self.assertEqual(len({rate for _, rate in OPTIMIZERS.values()}), 3)

    def test_the_closing_figure_is_of_all_that_is_held_out_by_the_best_weights(self):
        self.write("text.txt", SHORT * 60)
        out = self.train("--val-fraction=0.8", "--max-iters=1")
        rnn, run, _ = load_checkpoint("char_rnn.npz")
        rnn.use(run.best)
        nats = rnn.evaluate(DataReader("text.txt", 8, 4, 0.8).val_ids)
        self.assertIn(f"validation loss {nats:.4f} nats per character", out)

    def test_sample_writes_with_the_best_weights_of_the_newest_checkpoint(self):
        self.train(
            "--hidden-size=64", "--max-iters=500", "--val-fraction=0.5", "--learning-rate=0.02"
        )
        rnn, run, about = load_checkpoint("char_rnn.npz")
        last = rnn.predict(about, "\n", 60, temperature=0)
        rnn.use(run.best)
        best = rnn.predict(about, "\n", 60, temperature=0)
        self.assertNotEqual(best, last)
        flags = ["sample", "--temperature=0", "--length=60"]
        self.assertEqual(self.succeed(*flags, told="from char_rnn.npz\n"), best + "\n")
        self.train("--max-iters=1")
        self.assertNotEqual(self.succeed(*flags, told="from char_rnn-2.npz\n"), best + "\n")
        seeded = [self.succeed("sample", "char_rnn.npz", f"--seed={seed}") for seed in (1, 1, 2)]
        self.assertTrue(seeded[0] == seeded[1] != seeded[2])

    def test_sample_lines_writes_whole_lines_and_nothing_else(self):
        self.train("--max-iters=300")
        status, out, err = self.real("sample", "char_rnn.npz", "--lines=20", "--seed=4")
        self.assertEqual((status, err, out.count("\n"), out[-1]), (0, "", 20, "\n"))
        self.assertLessEqual(max(map(len, out.split("\n"))), 1000)
        out = self.succeed("sample", "char_rnn.npz", "--lines=5", "--start=The")
        self.assertTrue(all(line.startswith("The") for line in out.splitlines()))
        rnn, run, about = load_checkpoint("char_rnn.npz")
        rnn.use(run.best)
        first = rnn.predict(about, "\n", 1000, temperature=0).split("\n")[1]
        out = self.succeed("sample", "char_rnn.npz", "--lines=2", "--temperature=0")
        self.assertEqual(out, f"{first}\n" * 2)  # each from a newline and a zero state

    def test_test_scores_a_text_or_each_line_alone_and_says_what_the_model_has_seen(self):
        self.train("--max-iters=50")
        rnn, run, about = load_checkpoint("char_rnn.npz")
        rnn.use(run.best)
        cow = "The cow said to the owl\n\nthat it was late."
        told = "left out, as the model never saw them: 'ö' '☂'\n"
        self.write("cow.txt", cow.replace("a", "aö☂"))
        nats = rnn.evaluate(char_rnn.encode(cow, about.chars))
        out = self.succeed("test", "char_rnn.npz", "cow.txt", told=told)
        self.assertIn(f"{nats:.4f} nats ({nats / math.log(2):.4f} bits) per character\n", out)
        self.assertIn(
            f"perplexity {math.exp(nats):.2f}; guessing would have {rnn.vocab_size}\n", out
        )
        scored = []
        for line in cow.splitlines(keepends=True):
            ids = char_rnn.encode("\n" + line, about.chars)
            y_pred = rnn.forward(ids[:-1], np.zeros(16))[1]
            scored.append(f"{rnn.loss(y_pred, ids[1:]) / len(line):7.3f}  {line}")
        out = self.succeed("test", "char_rnn.npz", "cow.txt", "--lines", told=told)
        self.assertEqual(out, "".join(scored))
        seen = "the model was trained on this text\n"
        self.succeed("test", "char_rnn.npz", "text.txt", told=seen)

    def test_init_from_goes_on_with_another_text_from_the_best_weights(self):
        self.train("--max-iters=200", "--checkpoint=first.npz")
        text = self.write("second.txt", SHORT[::-1])
        self.succeed(text, *SMALL[1:], "--init-from=first.npz", "--max-iters=1")
        first, first_run, about = load_checkpoint("first.npz")
        _, run, second = load_checkpoint("char_rnn.npz")
        first.use(first_run.best)
        ids = DataReader(text, 8, 4, chars=about.chars).val_ids
        self.assertEqual(run.history[0][3], first.evaluate(ids))
        self.assertEqual((run.iteration, second.chars), (1, about.chars))
        self.write("third.txt", SHORT[:300] + "☂")
        self.refuse("never saw '☂'", "third.txt", "--init-from=first.npz")
        self.refuse("not allowed", text, "--init-from=first.npz", "--hidden-size=16")

    def test_resume_reads_the_text_where_it_was_or_where_it_is_now_but_no_other(self):
        self.train("--max-iters=20")
        Path("text.txt").rename("moved.txt")
        self.refuse("text.txt'", "resume", "char_rnn.npz")
        self.succeed("resume", "char_rnn.npz", "moved.txt", "--max-iters=30")
        self.write("moved.txt", SHORT.replace("e", "a"))
        self.refuse("trained on another text", "resume", "char_rnn.npz", "moved.txt")

    def test_a_text_from_standard_input_is_read_and_no_command_that_fails_is_printed(self):
        flags = ["train", "-", *SMALL, "--max-iters=100000"]
        process = self.start(*flags, stdin=subprocess.PIPE)
        process.stdin.write(SHORT)
        process.stdin.close()
        process.stdin = None
        next(line for line in process.stdout if line.split()[:1] == ["100"])
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        self.assertEqual((process.returncode, err), (130, ""))
        self.assertIn("saved in char_rnn.npz", out)
        self.assertNotIn("python", out)

    @unittest.skipUnless(find_spec("matplotlib"), "matplotlib is not installed")
    def test_the_plot_is_a_picture_that_changes_with_the_losses(self):
        pictures = set()
        for iterations in (20, 60):
            self.train("--plot=loss.png", f"--max-iters={iterations}")
            pictures.add(Path("loss.png").read_bytes())
        self.assertEqual([picture[:8] for picture in pictures], [b"\x89PNG\r\n\x1a\n"] * 2)
        self.write("notes.svg", SHORT)
        self.refuse("is the text", "train", "notes.svg", "--plot=notes.svg")

    def test_a_plot_of_another_ending_or_without_matplotlib_is_refused(self):
        self.refuse("must end in .png, .svg or .pdf", *self.flags, "--plot=thesis.txt")
        with mock.patch.dict(sys.modules, {"matplotlib.figure": None}):
            self.refuse("pip install matplotlib", *self.flags, "--plot=a.png")

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
            ("more than 16 are needed", "train one.txt", f"train {os.devnull}"),
            ("nothing to predict", "test char_rnn.npz one.txt"),
            ("is not UTF-8 text (see line 3): save it as UTF-8", "train latin.txt"),
            ("is not UTF-8 text", "train wide.txt", "train narrow.txt"),
            ("whole number from 1 on", "--seq-length=-3", "--max-iters=0", "--hidden-size=ten"),
            ("whole number from 1 on", f"--hidden-size=1{'0' * 400}", "--eval-interval=0"),
            ("whole number from 0 on", "--seed=-1", "sample --length=-1"),
            ("positive number", "--learning-rate=nan", "--learning-rate=0"),
            ("val_fraction must be", "--val-fraction=1", "--val-fraction=-inf"),
            ("take one below", f"{small} --threshold=4", f"{small} --threshold=nan"),
            ("argument", "--optimizer=rmsprop", "--hiden-size=3", "resume --seed=1"),
            ("llocate", "--hidden-size=1000000000"),
            ("nowhere", f"{small} --checkpoint=nowhere/char_rnn.npz"),
            ("text.txt is damaged, or no checkpoint", "sample text.txt", "resume text.txt"),
            ("the model never saw 'é' '☂'", "sample char_rnn.npz --start=é☂"),
            ("temperature", "sample char_rnn.npz --temperature=nan"),
            ("temperature", "sample char_rnn.npz --temperature=-0.5"),
        ):
            for command in commands:
                self.refuse(saying, *command.split())

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
        damaged = [b"", b"PK" + bytes(1000), self.rng.bytes(5000), whole[:-1]]
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
            except Mistake as error:
                self.assertIn("damaged.npz is damaged, or no checkpoint", str(error))
                refused += 1
        self.assertGreater(refused, 200)

    def test_forged_arrays_are_refused_before_anything_large_is_built(self):
        with np.load("char_rnn.npz") as file:
            whole = dict(file)
        about = json.loads(str(whole["about"]))
        forged = [{"Wax": whole["Wax"].T}, {"m_Waa": whole["m_Waa"].astype(float)}]
        forged += [{"more": whole["by"]}, *({name: None} for name in whole)]  # None: taken away
        H, V, *rest = about["network"]
        for network in ([10**6, V, *rest], [H, V + 1, *rest], ["x", V, *rest], [H, V]):
            forged.append({"about": json.dumps(about | {"network": network})})
        forged.append({"about": json.dumps({"network": about["network"]})})
        for changes in forged:
            arrays = (whole | changes).items()
            np.savez("forged.npz", **{name: x for name, x in arrays if x is not None})
            for command in ("sample", "resume"):
                self.refuse("forged.npz is ", command, "forged.npz")

    def test_nothing_in_a_checkpoint_is_run(self):
        trap = np.array([Trap()], dtype=object)
        with np.load("char_rnn.npz") as file:
            np.savez("forged.npz", **{**file, "Wax": trap})
        self.refuse("forged.npz is damaged, or no checkpoint", "sample", "forged.npz")
        self.assertFalse(Path("witness").exists())
        with np.load("forged.npz", allow_pickle=True) as file:
            file["Wax"]  # the trap does work where pickles are allowed
        self.assertTrue(Path("witness").exists())

    def test_a_checkpoint_of_an_earlier_version_is_refused_as_such(self):
        about = {"chars": ["a", "b"], "model": [8, 0.01, "adam", "float32"], "settings": {}}
        np.savez("old.npz", about=np.array(json.dumps(about)), last_Wax=np.zeros((4, 2)))
        for command in ("sample", "resume"):
            self.refuse("of an earlier version of char_rnn.py", command, "old.npz")


class Trap:
    """What a forged pickle can do: it creates a file when it is loaded."""

    def __reduce__(self):
        return (Path.touch, (Path("witness"),))


class TestReadme(InFolder):
    def test_python_snippets_about_char_rnn_run_and_print_what_stands_below_them(self):
        readme = (HERE / "README.md").read_text(encoding="utf-8")
        found = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", readme, re.DOTALL)
        snippets = [(code, printed) for code, printed in found if "char_rnn" in code]
        self.assertTrue(any(printed for _, printed in snippets))
        self.write("char_rnn.py", Path(SCRIPT).read_bytes())
        Path("data").symlink_to(HERE / "data")
        for code, printed in snippets:
            status, out, err = self.real(code, script=("-c",))
            self.assertEqual((status, err), (0, ""))
            self.assertIn(printed, (out, ""))


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


class Jax:
    """The same in JAX, compiled."""

    def __init__(self, rnn):
        self.rate = rnn.learning_rate
        w = {name: jnp.array(x.T) for name, x in rnn.parameters().items()}
        zeros = jax.tree.map(jnp.zeros_like, w)
        self.state = (w, zeros, zeros, 1.0)
        self.compiled = jax.jit(self.update)

    def loss(self, w, a_prev, inputs, targets):
        from_x = w["Wax"][inputs] + w["ba"]
        a_last, a = jax.lax.scan(lambda a, x: 2 * (jnp.tanh(a @ w["Waa"] + x),), a_prev, from_x)
        log_y = jax.nn.log_softmax(a @ w["Wya"] + w["by"])
        picked = jnp.take_along_axis(log_y, targets[..., None], -1)
        return -picked.sum() / len(a_prev), a_last

    def update(self, state, *batch):
        w, m, v, t = state
        (loss, a), grads = jax.value_and_grad(self.loss, has_aux=True)(w, *batch)
        grads = jax.tree.map(lambda g: g.clip(-5, 5), grads)
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, v, grads)
        w = jax.tree.map(lambda w, m, v: w - self.step_of(m, v, t), w, m, v)
        return (w, m, v, t + 1), loss, a

    def step_of(self, m, v, t):
        return self.rate * m / (1 - 0.9**t) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8)

    def step(self, a_prev, inputs, targets):
        self.state, loss, a = self.compiled(self.state, a_prev, inputs, targets)
        float(loss)
        return a


def speed(rounds=5, seconds=0.7):
    """Print characters per second of training, medians of rounds in which the peers take turns."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # one core for all
    kinds = {"ours": Ours}
    if find_spec("torch"):
        torch.set_num_threads(1)
        kinds["torch"] = InTorch
    if find_spec("jax"):
        kinds["jax"] = Jax
    print("hidden x steps x streams: characters per second,", " and ".join(kinds), "and ratios")
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
    a = peer.step(np.zeros((inputs.shape[1], H), np.float32), inputs, targets)  # compiled, warm
    started = time.perf_counter()
    done = 0
    while time.perf_counter() < started + seconds:
        a = peer.step(a, inputs, targets)
        done += inputs.size
    return done / (time.perf_counter() - started)


if __name__ == "__main__":
    speed() if "--speed" in sys.argv else unittest.main()

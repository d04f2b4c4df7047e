# SPDX-License-Identifier: MIT-0
"""What char_rnn.py promises, each test one claim. Run with:  python -m unittest"""

import contextlib
import csv
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np

import char_rnn
from char_rnn import RNN, DataReader, softmax

try:
    import pty
    import resource
except ImportError:
    pty = resource = None
try:
    import torch
except ImportError:
    torch = None
try:
    import matplotlib
except ImportError:
    matplotlib = None

# For the commands that are run below: a second thread is no use to models this small, and waits on a busy machine.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

HERE = Path(__file__).resolve().parent
SCRIPT = str(HERE / "char_rnn.py")
FABLES = str(HERE / "data" / "fables.txt")
PARAMETERS = ("Wax", "Waa", "Wya", "ba", "by")
on_posix = unittest.skipIf(pty is None, "needs a POSIX system")
SMALL = ["--hidden-size=16", "--seq-length=8", "--batch-size=4"]  # a model that trains in a blink


class InFolder(unittest.TestCase):
    """Each test in an empty folder of its own, with helpers to write files and to run the real command."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def write(self, name, content):
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def command(self, *args):
        return [sys.executable, SCRIPT, *map(str, args)]

    def run_script(self, *args, **options):
        return subprocess.run(
            self.command(*args), cwd=self.folder, capture_output=True, timeout=120, **options
        )

    def succeed(self, *args, **options):
        done = self.run_script(*args, **options)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        return done.stdout.decode()

    def refuse(self, *args, saying="", **options):
        """The command fails with status 2 and one line on stderr that has `saying` in it."""
        done = self.run_script(*args, **options)
        lines = done.stderr.decode().splitlines()
        self.assertEqual((done.returncode, len(lines)), (2, 1), done.stderr)
        self.assertIn(saying, lines[0])

    def reader(self, text, *args, **options):
        return DataReader(self.write("text.txt", text), *args, **options)


class TestData(InFolder):
    def test_reads_the_same_text_as_python_does(self):
        for text in (
            "plain ascii\n",
            "naïve “quotes” 語 😀\r\nand a Windows line end\n",
            "\ufeffa byte-order mark",
            "an old\rMac",
        ):
            with self.subTest(text):
                reader = self.reader(text * 3, 2, val_fraction=0)
                expected = "".join(io.TextIOWrapper(io.BytesIO((text * 3).encode()), "utf-8-sig"))
                self.assertEqual("".join(reader.ix_to_char[ix] for ix in reader.train_ids), expected)
                self.assertEqual(reader.chars, sorted(set(expected)))
                self.assertEqual(
                    [reader.char_to_ix[char] for char in reader.chars], list(range(reader.vocab_size))
                )

    def test_a_text_longer_than_the_pieces_it_is_read_in_survives_them(self):
        text = "a語😀é\r\n" * 400_000
        chars, ids = char_rnn.read_text(self.write("text.txt", text))
        self.assertEqual("".join(map(chars.__getitem__, ids.tolist())), text.replace("\r\n", "\n"))

    def test_streams_cover_the_text_without_gap_or_overlap(self):
        T, B = 5, 3
        text = "".join(map(chr, range(200, 400)))  # every character once, so that a character tells its place
        reader = self.reader(text, T, B, val_fraction=0.1)
        read, passes = [], []
        for _ in range(2 * reader.stretch // T):
            passes.append(reader.just_started())
            inputs, targets = reader.next_batch()
            self.assertEqual((inputs.shape, targets.shape), ((T, B), (T, B)))
            np.testing.assert_array_equal(inputs[1:], targets[:-1])
            np.testing.assert_array_equal(inputs + 1, targets)
            read.append(inputs)
        one_pass = len(read) // 2
        columns = np.concatenate(read[:one_pass]).T.ravel()  # stream after stream
        np.testing.assert_array_equal(columns, np.arange(len(columns)))
        self.assertLess(
            len(reader.train_ids) - 1 - len(columns), T * B
        )  # what is left over is less than a batch
        np.testing.assert_array_equal(np.concatenate(read[:one_pass]), np.concatenate(read[one_pass:]))
        self.assertEqual(passes, ([True] + [False] * (one_pass - 1)) * 2)

    def test_training_never_reads_what_is_held_out(self):
        reader = self.reader("x" * 450 + "y" * 50, 4, 2, val_fraction=0.1)
        for _ in range(200):
            inputs, targets = reader.next_batch()
            self.assertTrue((inputs == 0).all() and (targets == 0).all())
        self.assertEqual(reader.val_ids.tolist(), [1] * 50)

    def test_a_damaged_text_is_read_or_refused_with_a_reason(self):
        whole, rng, outcomes = Path(FABLES).read_bytes()[:3000], np.random.default_rng(0), []
        for _ in range(300):
            text = bytearray(whole[: rng.integers(len(whole))])
            for _ in range(rng.integers(3)):
                place = rng.integers(len(text) + 1)
                text[place : place + rng.integers(5)] = rng.bytes(rng.integers(5))
            try:
                reader = self.reader(bytes(text), 8, 4)
                inputs, targets = reader.next_batch()
                self.assertLess(max(inputs.max(), targets.max()), reader.vocab_size)
                outcomes.append("read")
            except ValueError as error:
                outcomes.append(
                    re.search("characters, but|is empty|holds nothing but|is not UTF-8", str(error))[0]
                )
        self.assertLessEqual({"read", "characters, but", "is not UTF-8"}, set(outcomes))

    def test_a_text_long_enough_for_one_batch_only_trains_without_validation(self):
        reader = self.reader("abcdefgh" * 2, 5, 3)
        self.assertEqual((len(reader.train_ids), len(reader.val_ids)), (16, 0))
        with self.assertRaisesRegex(ValueError, "15 characters.*at least 16"):
            self.reader(("abcdefgh" * 2)[:15], 5, 3)


class TestMathematics(unittest.TestCase):
    def setUp(self):
        self.rng = np.random.default_rng(1)

    def problem(self, H=5, V=7, T=6, B=3, dtype=np.float64):
        """A float64 model with no zero anywhere, a batch, and a hidden state to start from."""
        rnn = RNN(H, V, T, 0.01, dtype=dtype, seed=2)
        rnn.ba, rnn.by = self.rng.normal(size=H), self.rng.normal(size=V)
        shape = (T, B) if B else (T,)
        inputs, targets = self.rng.integers(0, V, shape), self.rng.integers(0, V, shape)
        return rnn, inputs, targets, self.rng.normal(size=(*shape[1:], H))

    def test_softmax_rows_sum_to_one_and_never_overflow(self):
        for shape in ((4,), (3, 4), (2, 3, 4)):
            x = self.rng.normal(size=shape)
            np.testing.assert_allclose(softmax(x), np.exp(x) / np.exp(x).sum(-1, keepdims=True), rtol=1e-13)
        with np.errstate(all="raise", under="ignore"):
            for x in ([1e30, -1e30, 0], [1e308, 1e308, 1e308], [-1e300, -1e300, -1e300]):
                self.assertAlmostEqual(softmax(np.array(x)).sum(), 1, places=14)

    def test_softmax_leaves_its_input_alone(self):
        x = self.rng.normal(size=(3, 4))
        before = x.copy()
        softmax(x)
        np.testing.assert_array_equal(x, before)

    def test_forward_is_the_handouts_recurrence_written_out(self):
        rnn, inputs, _, a_prev = self.problem()
        a, y_pred = rnn.forward(inputs, a_prev)
        np.testing.assert_array_equal(a[0], a_prev)
        for b in range(inputs.shape[1]):
            hidden = a_prev[b]
            for t in range(len(inputs)):
                hidden = np.tanh(rnn.Waa @ hidden + rnn.Wax @ np.eye(7)[inputs[t, b]] + rnn.ba)
                np.testing.assert_allclose(a[t + 1, b], hidden, atol=1e-13)
                np.testing.assert_allclose(y_pred[t, b], softmax(rnn.Wya @ hidden + rnn.by), atol=1e-13)

    def test_one_sequence_gives_the_same_as_a_batch_of_one(self):
        rnn, inputs, targets, a_prev = self.problem(B=1)
        a, y_pred = rnn.forward(inputs, a_prev)
        a1, y1 = rnn.forward(inputs[:, 0], a_prev[0])
        self.assertEqual((a1.shape, y1.shape), ((7, 5), (6, 7)))
        np.testing.assert_allclose(a1, a[:, 0], atol=1e-14)
        np.testing.assert_allclose(y1, y_pred[:, 0], atol=1e-14)
        self.assertAlmostEqual(rnn.loss(y1, targets[:, 0]), rnn.loss(y_pred, targets), places=12)
        grads, grads1 = (
            rnn.backward(inputs, a, y_pred, targets),
            rnn.backward(inputs[:, 0], a1, y1, targets[:, 0]),
        )
        for name in PARAMETERS:
            np.testing.assert_allclose(grads1[name], grads[name], atol=1e-13)

    def test_loss_is_summed_over_time_and_averaged_over_streams(self):
        rnn, inputs, targets, a_prev = self.problem()
        y_pred = rnn.forward(inputs, a_prev)[1]
        by_hand = -sum(math.log(y_pred[t, b, targets[t, b]]) for t in range(6) for b in range(3)) / 3
        self.assertAlmostEqual(rnn.loss(y_pred, targets), by_hand, places=12)

    def test_loss_is_finite_even_where_the_probability_is_zero(self):
        rnn = RNN(4, 3, 2, 0.1)
        certain_and_wrong = np.array([[1, 0, 0], [1, 0, 0]], np.float32)
        self.assertTrue(100 < rnn.loss(certain_and_wrong, np.array([1, 2])) < 1000)

    def test_gradients_match_central_differences_for_every_parameter(self):
        for sizes in (
            dict(),
            dict(T=1),
            dict(B=1),
            dict(B=None),
            dict(T=1, B=None),
            dict(H=1),
            dict(V=2, T=9),
        ):
            rnn, inputs, targets, a_prev = self.problem(**sizes)
            grads = rnn.backward(inputs, *rnn.forward(inputs, a_prev), targets)
            self.assertEqual(set(grads), set(PARAMETERS))
            for name in PARAMETERS:
                parameter, numeric = getattr(rnn, name), np.zeros_like(getattr(rnn, name))
                self.assertEqual(grads[name].shape, parameter.shape)
                for place in np.ndindex(parameter.shape):
                    kept, sides = parameter[place], []
                    for nudge in (1e-5, -1e-5):
                        parameter[place] = kept + nudge
                        sides.append(rnn.loss(rnn.forward(inputs, a_prev)[1], targets))
                    parameter[place] = kept
                    numeric[place] = (sides[0] - sides[1]) / 2e-5
                with self.subTest(name, **sizes):
                    self.assertGreater(np.linalg.norm(numeric), 1e-3)
                    error = np.linalg.norm(numeric - grads[name]) / np.linalg.norm(numeric)
                    self.assertLess(error, 1e-6)

    def test_a_long_sequence_in_pieces_has_the_loss_of_the_whole(self):
        rnn, inputs, targets, a_prev = self.problem(T=12)
        a, y_pred = rnn.forward(inputs, a_prev)
        first, y_first = rnn.forward(inputs[:5], a_prev)
        rest, y_rest = rnn.forward(inputs[5:], first[-1])
        np.testing.assert_allclose(rest[-1], a[-1], atol=1e-13)
        pieces = rnn.loss(y_first, targets[:5]) + rnn.loss(y_rest, targets[5:])
        self.assertAlmostEqual(pieces, rnn.loss(y_pred, targets), places=11)

    @unittest.skipIf(torch is None, "torch is not installed")
    def test_forward_loss_and_gradients_match_torch_autograd(self):
        H, V, T, B = 6, 8, 10, 4
        rnn, inputs, targets, a_prev = self.problem(H, V, T, B)
        theirs, out = torch.nn.RNN(V, H).double(), torch.nn.Linear(H, V).double()
        places = {"Wax": theirs.weight_ih_l0, "Waa": theirs.weight_hh_l0, "Wya": out.weight}
        places |= {"ba": theirs.bias_ih_l0, "by": out.bias}
        with torch.no_grad():
            theirs.bias_hh_l0.zero_()
            for name, place in places.items():
                place.copy_(torch.tensor(getattr(rnn, name)))
        x = torch.nn.functional.one_hot(torch.tensor(inputs), V).double()
        hidden, _ = theirs(x, torch.tensor(a_prev)[None])
        z = out(hidden)
        loss = (
            torch.nn.functional.cross_entropy(
                z.reshape(-1, V), torch.tensor(targets).ravel(), reduction="sum"
            )
            / B
        )
        loss.backward()

        a, y_pred = rnn.forward(inputs, a_prev)
        np.testing.assert_allclose(a[1:], hidden.detach(), atol=1e-10)
        np.testing.assert_allclose(y_pred, z.softmax(-1).detach(), atol=1e-10)
        self.assertAlmostEqual(rnn.loss(y_pred, targets), loss.item(), delta=1e-10)
        grads = rnn.backward(inputs, a, y_pred, targets)
        for name, place in places.items():
            np.testing.assert_allclose(grads[name], place.grad, atol=1e-10, err_msg=name)

    @unittest.skipIf(torch is None, "torch is not installed")
    def test_optimisers_match_torch_over_fifty_steps(self):
        rules = {"adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad, "sgd": torch.optim.SGD}
        for name, rule in rules.items():
            rnn = RNN(3, 4, 5, 0.03, optimizer=name, dtype=np.float64)
            theirs = {key: torch.tensor(getattr(rnn, key).copy(), requires_grad=True) for key in PARAMETERS}
            optimiser = rule(theirs.values(), lr=0.03)
            for _ in range(50):
                grads = {key: self.rng.normal(size=getattr(rnn, key).shape) for key in PARAMETERS}
                rnn.update(grads)
                for key in PARAMETERS:
                    theirs[key].grad = torch.tensor(grads[key])
                optimiser.step()
            for key in PARAMETERS:
                np.testing.assert_allclose(
                    getattr(rnn, key), theirs[key].detach(), atol=1e-10, err_msg=f"{name} {key}"
                )

    def test_update_clips_every_element_to_five(self):
        large, clipped = (RNN(3, 4, 5, 0.1, optimizer="sgd", dtype=np.float64) for _ in range(2))
        grads = {key: self.rng.normal(scale=20, size=getattr(large, key).shape) for key in PARAMETERS}
        large.update(grads)
        clipped.update({key: np.clip(value, -5, 5) for key, value in grads.items()})
        np.testing.assert_array_equal(large.theta, clipped.theta)
        self.assertGreater(
            max(np.abs(value).max() for value in grads.values()), 20
        )  # and the caller's are unclipped

    def test_a_parameter_that_is_assigned_to_is_the_one_that_learns(self):
        rnn = RNN(3, 4, 5, 0.1, optimizer="sgd")
        rnn.Waa = np.eye(3)
        rnn.update({key: np.ones_like(getattr(rnn, key)) for key in PARAMETERS})
        np.testing.assert_allclose(rnn.Waa, np.eye(3) - 0.1, atol=1e-7)

    def test_parameters_have_the_handouts_shapes(self):
        rnn = RNN(3, 4, 5, 0.1)
        shapes = {name: getattr(rnn, name).shape for name in PARAMETERS}
        self.assertEqual(shapes, {"Wax": (3, 4), "Waa": (3, 3), "Wya": (4, 3), "ba": (3,), "by": (4,)})


class TestLearning(InFolder):
    def train(self, rnn, reader, **options):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            losses = rnn.train(reader, **options)
        return losses, printed.getvalue()

    def test_a_text_of_one_repeated_word_is_learned(self):
        reader = self.reader("hello " * 400, 12, 4)
        rnn = RNN(32, reader.vocab_size, 12, 0.01)
        losses, _ = self.train(rnn, reader, max_iters=400)
        self.assertLess(losses[-1] / 12, 0.05)
        self.assertLess(rnn.evaluate(reader), 0.05)
        self.assertEqual(rnn.predict(reader, "hel", 21, temperature=0), "hello hello hello hello "[:24])

    def test_every_optimiser_learns(self):
        reader = self.reader("abcde " * 200, 6, 2)
        for optimizer, rate in (("adam", 0.01), ("adagrad", 0.1), ("sgd", 0.1)):
            losses, _ = self.train(RNN(16, reader.vocab_size, 6, rate, optimizer), reader, max_iters=300)
            self.assertLess(losses[-1], losses[0] / 4, optimizer)

    def test_the_first_loss_is_near_that_of_guessing(self):
        reader = DataReader(FABLES, 25, 8)
        losses, _ = self.train(RNN(64, reader.vocab_size, 25, 1e-3), reader, max_iters=1)
        self.assertLess(abs(losses[0] / 25 - math.log(reader.vocab_size)), 0.7)

    def test_training_ends_when_the_smooth_loss_reaches_the_threshold(self):
        reader = self.reader("hello " * 400, 12, 4)
        rnn = RNN(32, reader.vocab_size, 12, 0.01)
        losses, _ = self.train(rnn, reader, threshold=6.0, max_iters=10**6)
        smooth = 12 * math.log(reader.vocab_size)
        for loss in losses:
            self.assertGreater(smooth, 6.0)
            smooth += 0.01 * (loss - smooth)
        self.assertLessEqual(smooth, 6.0)
        self.assertEqual(rnn.iteration, len(losses))

    def test_the_hidden_state_is_carried_from_batch_to_batch_and_zero_at_each_pass(self):
        reader = self.reader("hello world " * 4, 5, 2, val_fraction=0)
        rnn, seen = RNN(8, reader.vocab_size, 5, 0.01), []
        forward = rnn.forward
        rnn.forward = lambda inputs, a_prev: (
            seen.append((a_prev.copy(), forward(inputs, a_prev)[0][-1])) or forward(inputs, a_prev)
        )
        batches = reader.stretch // 5
        rnn.train(reader, max_iters=2 * batches, report=lambda rnn: None)
        for i, (a_prev, _) in enumerate(seen):
            np.testing.assert_array_equal(a_prev, seen[i - 1][1] if i % batches else np.zeros((2, 8)))

    def test_one_seed_gives_one_history_and_one_sample(self):
        reader, runs = self.reader("to be or not to be " * 40, 8, 4), []
        for seed in (0, 0, 1):
            reader.position = 0
            rnn = RNN(16, reader.vocab_size, 8, 0.01, seed=seed)
            losses, _ = self.train(rnn, reader, max_iters=50)
            runs.append((losses.copy(), rnn.predict(reader, "to", 50)))
        self.assertEqual(runs[0], runs[1])
        self.assertNotEqual(runs[0], runs[2])

    def test_evaluate_is_the_mean_over_the_held_out_text_with_the_state_carried_through(self):
        reader = DataReader(FABLES, 16, 8)
        rnn = RNN(32, reader.vocab_size, 16, 0.01)
        self.train(rnn, reader, max_iters=300)
        for held_out, tolerance in ((reader.val_ids[:1500], 1e-6), (reader.val_ids[:14000], 1e-3)):
            reader.val_ids = held_out
            ids = held_out.astype(np.intp)
            y_pred = rnn.forward(ids[:-1], np.zeros(32))[1]
            self.assertAlmostEqual(
                rnn.evaluate(reader), rnn.loss(y_pred, ids[1:]) / (len(ids) - 1), delta=tolerance
            )

    def test_the_best_weights_by_validation_are_kept(self):
        reader = self.reader("the cat sat on the mat and " * 30, 8, 4, val_fraction=0.2)
        rnn, nats = RNN(16, reader.vocab_size, 8, 0.01), []
        progress = char_rnn.Progress.__call__

        with contextlib.redirect_stdout(io.StringIO()):
            report = char_rnn.Progress(reader, 200)
            report.validate_every = 10
            rnn.train(reader, 200, report=lambda rnn: progress(report, rnn), report_every=10)
        nats = [row[3] for row in rnn.history]
        self.assertEqual(len(nats), 20)
        self.assertEqual(rnn.best_loss, min(nats))
        rnn.theta[:] = rnn.best_theta
        self.assertAlmostEqual(rnn.evaluate(reader), min(nats), places=6)

    def test_train_refuses_a_reader_of_other_sizes(self):
        reader = self.reader("abc" * 50, 5)
        for rnn in (RNN(4, 3, 6, 0.1), RNN(4, 2, 5, 0.1)):
            with self.assertRaisesRegex(ValueError, r"\(3, 5\)"):
                rnn.train(reader)


class TestSampling(InFolder):
    def test_sampling_frequencies_match_softmax_by_a_chi_square_bound(self):
        V, n = 6, 20_000
        rnn = RNN(4, V, 5, 0.1, seed=3)
        rnn.Wax, rnn.Waa = np.zeros((4, V)), np.zeros((4, 4))  # every draw comes from the same distribution
        rnn.by = np.log([0.05, 0.1, 0.15, 0.2, 0.2, 0.3])
        for temperature in (0.5, 1.0, 2.0):
            counts = np.bincount(rnn.sample(np.zeros(4), 0, n, temperature), minlength=V)
            expected = n * softmax(np.log([0.05, 0.1, 0.15, 0.2, 0.2, 0.3]) / temperature)
            chi_square = ((counts - expected) ** 2 / expected).sum()
            self.assertLess(chi_square, 20.5)  # 5 degrees of freedom: passed by 99.9 % of honest samples
            self.assertGreater(chi_square, 0.1)

    def test_temperature_zero_takes_the_likeliest_character_every_time(self):
        rnn = RNN(8, 5, 5, 0.1, seed=4)
        a, ix, expected = np.zeros(8), 2, []
        for _ in range(20):
            hidden, y_pred = rnn.forward(np.array([ix]), a)
            a, ix = hidden[-1], int(y_pred[-1].argmax())
            expected.append(ix)
        self.assertEqual(rnn.sample(np.zeros(8), 2, 20, temperature=0), expected)

    def test_the_whole_start_warms_up_the_hidden_state(self):
        reader = self.reader("abcdefgh" * 20, 4)
        rnn = RNN(16, 8, 4, 0.1, seed=5)
        start = "abcdefgh" * 300  # longer than the pieces it is read in
        ids = char_rnn.encode(start, reader.char_to_ix)
        y_next = rnn.forward(ids, np.zeros(16))[1][-1]
        predicted = rnn.predict(reader, start, 1, temperature=0)
        self.assertEqual(predicted, start + reader.chars[int(y_next.argmax())])

    def test_a_temperature_next_to_zero_does_not_break_sampling(self):
        rnn = RNN(8, 5, 5, 0.1)
        self.assertEqual(rnn.sample(np.zeros(8), 1, 9, 1e-320), rnn.sample(np.zeros(8), 1, 9, 0))

    def test_characters_the_model_never_saw_are_named(self):
        reader = self.reader("abc" * 20, 4)
        with self.assertRaisesRegex(ValueError, "'X' 'é'"):
            RNN(4, 3, 4, 0.1).predict(reader, "abXcé", 5)


def same_run(one, other):
    """Whether two checkpoints hold the same training run to the last bit, all but the seconds that it took."""
    (rnn1, about1), (rnn2, about2) = map(char_rnn.load_checkpoint, (one, other))
    arrays = [
        [
            rnn.theta,
            rnn.best_theta,
            rnn.moments,
            rnn.a_prev,
            np.array(rnn.losses),
            np.array(rnn.history)[:, [0, 2, 3]],
        ]
        for rnn in (rnn1, rnn2)
    ]
    about1.pop("seconds"), about2.pop("seconds")
    return about1 == about2 and all(a.tobytes() == b.tobytes() for a, b in zip(*arrays))


class TestCheckpoints(InFolder):
    def setUp(self):
        super().setUp()
        self.text = self.write("text.txt", Path(FABLES).read_text(encoding="utf-8")[:20_000])

    def train(self, *args, **options):
        return self.succeed("train", self.text, *SMALL, *args, **options)

    def start(self, *args, **options):
        """A training process under way, its standard output a pipe to read progress lines from."""
        process = subprocess.Popen(
            self.command("train", self.text, *SMALL, *args),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def wait_for_iteration(self, process, iteration):
        """Read on until the progress line of that iteration has been printed."""
        for line in process.stdout:
            if line.split()[:1] == [f"{iteration:,}"]:
                return
        self.fail(process.stderr.read())

    @on_posix
    def test_a_killed_run_resumes_bit_for_bit(self):
        length = "--max-iters=16000"  # long enough to draw a sample on the way, from the random state
        self.train(length, "--checkpoint=straight.npz")
        killed = str(self.folder / "killed.npz")
        for resume, iteration in (((), 1000), (("--resume",), 4500), (("--resume",), 10_500)):
            process = self.start(length, f"--checkpoint={killed}", *resume)
            self.wait_for_iteration(process, iteration)
            process.send_signal(signal.SIGKILL)
            self.assertEqual(process.wait(), -signal.SIGKILL)
            saved = char_rnn.load_checkpoint(killed)[0].iteration
            self.assertTrue(iteration - 500 <= saved < 16_000)
        self.train(length, f"--checkpoint={killed}", "--resume")
        self.assertTrue(same_run(self.folder / "straight.npz", killed))

    @on_posix
    def test_a_stopped_run_says_so_saves_and_resumes_bit_for_bit(self):
        self.train("--max-iters=8000", "--checkpoint=straight.npz")
        for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            name = f"{status}.npz"
            process = self.start("--max-iters=8000", f"--checkpoint={name}", "--log=log.csv")
            self.wait_for_iteration(process, 1500)
            process.send_signal(number)
            out, err = process.communicate()
            self.assertEqual((process.returncode, err), (status, ""))
            self.assertRegex(
                out,
                rf"stopped after iteration [\d,]+; to go on:  python .*--checkpoint {name} --log=log.csv --resume",
            )
            self.assertLess(char_rnn.load_checkpoint(self.folder / name)[0].iteration, 8000)
            self.train("--max-iters=8000", f"--checkpoint={name}", "--resume")
            self.assertTrue(same_run(self.folder / "straight.npz", self.folder / name))

    def test_one_seed_gives_one_checkpoint_and_one_sample(self):
        outputs = []
        for name in ("one.npz", "two.npz"):
            self.train("--max-iters=600", "--seed=7", f"--checkpoint={name}")
            outputs.append(self.succeed("sample", name, "--seed=1", "--length=80"))
        self.assertTrue(same_run(self.folder / "one.npz", self.folder / "two.npz"))
        self.assertEqual(*outputs)
        self.assertNotEqual(outputs[0], self.succeed("sample", "one.npz", "--seed=2", "--length=80"))

    def test_resuming_a_finished_run_changes_nothing(self):
        self.train("--max-iters=60", "--log=log.csv")
        log = (self.folder / "log.csv").read_bytes()
        before = (self.folder / "char_rnn.npz").read_bytes()
        self.train("--resume", "--log=log.csv")
        self.assertEqual((self.folder / "log.csv").read_bytes(), log)
        self.assertEqual((self.folder / "char_rnn.npz").read_bytes(), before)

    def test_no_file_is_read_and_written_or_written_twice(self):
        words = Path(self.text).read_bytes()
        for args in (
            ["--log", self.text],
            ["--checkpoint", self.text],
            ["--log=a.npz", "--checkpoint=./a.npz"],
        ):
            self.refuse("train", self.text, *SMALL, "--max-iters=5", *args, saying="named twice")
        self.assertEqual(Path(self.text).read_bytes(), words)

    @on_posix
    def test_a_checkpoint_that_is_a_link_stays_one(self):
        (self.folder / "real").mkdir()
        (self.folder / "link.npz").symlink_to("real/there.npz")
        self.train("--max-iters=5", "--checkpoint=link.npz")
        self.assertTrue((self.folder / "link.npz").is_symlink())
        self.assertEqual(char_rnn.load_checkpoint(self.folder / "real" / "there.npz")[0].iteration, 5)
        self.refuse("train", self.text, *SMALL, "--checkpoint=/dev/null", saying="a folder or a device")

    def test_resume_goes_on_to_a_higher_limit_and_refuses_other_settings(self):
        self.train("--max-iters=200")
        out = self.succeed("train", self.text, "--resume", "--max-iters=300")
        self.assertIn("after iteration 200", out)
        self.assertEqual(char_rnn.load_checkpoint(self.folder / "char_rnn.npz")[0].iteration, 300)
        self.refuse("train", self.text, "--resume", "--hidden-size=17", saying="hidden_size 16, not 17")
        self.refuse("train", FABLES, "--resume", saying="another text")
        self.refuse("train", self.text, "--resume", "--checkpoint=none.npz", saying="none.npz: No such file")

    def test_sampling_uses_the_best_weights_by_validation(self):
        self.train("--max-iters=3000", "--learning-rate=0.05")
        rnn, about = char_rnn.load_checkpoint(self.folder / "char_rnn.npz")
        self.assertEqual(rnn.best_loss, np.nanmin(np.array(rnn.history)[:, 3]))
        rnn.theta[:] = rnn.best_theta
        ixs = rnn.sample(np.zeros(16), 0, 60, temperature=0)
        expected = about["chars"][0] + "".join(about["chars"][ix] for ix in ixs) + "\n"
        self.assertEqual(self.succeed("sample", "--temperature=0", "--length=60"), expected)

    def test_a_fresh_run_keeps_the_checkpoint_that_was_there(self):
        self.train("--max-iters=10")
        before = (self.folder / "char_rnn.npz").read_bytes()
        self.assertIn("kept as char_rnn.npz.old", self.train("--max-iters=20"))
        self.assertEqual((self.folder / "char_rnn.npz.old").read_bytes(), before)
        self.assertNotEqual((self.folder / "char_rnn.npz").read_bytes(), before)

    def test_two_runs_on_one_checkpoint_leave_a_whole_one(self):
        runs = [self.start("--max-iters=6000", f"--seed={seed}", "--checkpoint=both.npz") for seed in (0, 1)]
        for process in runs:
            self.wait_for_iteration(process, 1000)  # so that what was saved after 500 is there
        for _ in range(20):
            char_rnn.load_checkpoint(self.folder / "both.npz")
        for process in runs:
            self.assertEqual((process.communicate()[1], process.returncode), ("", 0))
        rnn, about = char_rnn.load_checkpoint(self.folder / "both.npz")
        self.assertEqual(rnn.iteration, 6000)
        self.train("--max-iters=6000", f"--seed={about['settings']['seed']}", "--checkpoint=alone.npz")
        self.assertTrue(same_run(self.folder / "both.npz", self.folder / "alone.npz"))

    @on_posix
    def test_a_full_disk_costs_no_checkpoint(self):
        self.train("--max-iters=1000")
        before = (self.folder / "char_rnn.npz").read_bytes()

        def full():  # no file may grow past half of what a checkpoint needs
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2,) * 2)

        self.refuse("train", self.text, "--resume", "--max-iters=9000", saying="untouched", preexec_fn=full)
        self.assertEqual((self.folder / "char_rnn.npz").read_bytes(), before)
        self.assertEqual(sorted(os.listdir(self.folder)), ["char_rnn.npz", "text.txt"])

    @on_posix
    def test_a_read_only_folder_costs_no_checkpoint(self):
        folder = self.folder / "closed"
        folder.mkdir()
        self.train("--max-iters=10", "--checkpoint=closed/char_rnn.npz")
        before = (folder / "char_rnn.npz").read_bytes()
        self.folder.chmod(0o755)
        folder.chmod(0o555)
        self.addCleanup(folder.chmod, 0o755)
        as_user = (  # root may write anywhere, so it becomes an ordinary user once a first command has imported all
            "import os, sys, char_rnn; char_rnn.main(['sample', 'closed/char_rnn.npz', '--length=1']); "
            "os.geteuid() or os.setuid(65534); sys.exit(char_rnn.main(sys.argv[1:]))"
        )
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                as_user,
                "train",
                self.text,
                "--resume",
                "--checkpoint=closed/char_rnn.npz",
            ],
            cwd=self.folder,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(HERE)},
        )
        self.assertEqual((done.returncode, len(done.stderr.splitlines())), (2, 1), done.stderr)
        self.assertIn("read-only", done.stderr)
        self.assertEqual((folder / "char_rnn.npz").read_bytes(), before)
        self.assertEqual(os.listdir(folder), ["char_rnn.npz"])

    def test_damaged_checkpoints_are_refused(self):
        self.train("--max-iters=20")
        whole = (self.folder / "char_rnn.npz").read_bytes()
        rng = np.random.default_rng(0)
        damaged = [b"", whole[:10], whole[:-1], whole + b"\0", b"PK" + bytes(1000), np.random.bytes(5000)]
        damaged += [whole[:cut] for cut in rng.integers(0, len(whole), 50)]
        for place in rng.integers(0, len(whole), 200):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << rng.integers(8)
            damaged.append(bytes(flipped))
        for content in damaged:
            with self.assertRaisesRegex(ValueError, "damaged, or not a checkpoint"):
                char_rnn.load_checkpoint(self.write("damaged.npz", content))
        self.refuse("sample", "damaged.npz", saying="damaged.npz is damaged, or not a checkpoint")
        self.refuse(
            "train", self.text, "--resume", "--checkpoint=damaged.npz", saying="damaged.npz is damaged"
        )

    def forge(self, change):
        """A checkpoint whose arrays were changed by hand and whose checksum was made to fit."""
        with np.load(self.folder / "char_rnn.npz") as file:
            arrays = dict(file)
        change(arrays)
        file = io.BytesIO()
        np.savez(file, **arrays)
        data = file.getvalue()
        return self.write("forged.npz", data + char_rnn.hashlib.sha256(data).digest())

    def test_arrays_of_another_name_shape_or_type_are_refused(self):
        self.train("--max-iters=20")

        def swap(arrays):
            arrays["Wax"], arrays["Wya"] = arrays["Wya"], arrays["Wax"]

        def widen(arrays):
            arrays["theta"] = arrays["theta"].astype(np.float64)

        def other_settings(arrays):
            about = json.loads(str(arrays["about"]))
            about["settings"]["hidden_size"] = 10**9
            arrays["about"] = np.array(json.dumps(about))

        changes = [
            swap,
            widen,
            other_settings,
            lambda arrays: arrays.pop("moments"),
            lambda arrays: arrays.pop("about"),
        ]
        changes += [
            lambda arrays: arrays.update(extra=np.zeros(3)),
            lambda arrays: arrays.update(about=np.array("{}")),
        ]
        changes += [lambda arrays: arrays.update(by=arrays["by"][:-1])]
        for change in changes:
            self.refuse("sample", self.forge(change), saying="forged.npz is not a checkpoint of char_rnn.py")

    def test_no_code_from_a_checkpoint_is_ever_run(self):
        self.train("--max-iters=20")
        witness = self.folder / "witness"

        class Trap:
            def __reduce__(self):
                return (Path.touch, (witness,))

        path = self.forge(lambda arrays: arrays.update(theta=np.array([Trap()], dtype=object)))
        self.refuse("sample", path, saying="forged.npz is not a checkpoint")
        self.assertFalse(witness.exists())
        with np.load(path, allow_pickle=True) as file:
            file["theta"]  # the trap does work where pickles are allowed
        self.assertTrue(witness.exists())


class TestCommandLine(InFolder):
    def test_without_arguments_it_learns_the_fables(self):
        out = self.succeed("--max-iters=3")
        self.assertIn("before training it writes", out)
        self.assertIn("fables.txt: 144,642 characters, 62 of them distinct", out)
        self.assertIn("log(62) = 4.127 nats", out)
        nats = float(re.search(r"validation loss (\d\.\d+) nats", out)[1])
        self.assertIn(f"as unsure as between {math.exp(nats):.1f} equally likely characters", out)
        self.assertIn("sample char_rnn.npz", out)
        self.assertTrue((self.folder / "char_rnn.npz").exists())

    def test_a_progress_line_every_500_iterations_and_a_sample_every_10000(self):
        out = self.succeed("train", FABLES, *SMALL, "--max-iters=10250")
        self.assertNotIn("\r", out)
        lines = [line.split()[0] for line in out.splitlines() if re.match(r" +[\d,]+ +\d+\.\d\d ", line)]
        self.assertEqual(lines, [f"{i:,}" for i in range(500, 10_001, 500)] + ["10,250"])
        sample = out.split(" 10,000 ")[1].split(" 10,250 ")[0]
        self.assertGreater(len(sample), 300)

    @on_posix
    def test_on_a_terminal_progress_is_updated_in_place(self):
        ours, theirs = pty.openpty()
        with open(theirs, "wb") as terminal:
            command = self.command("train", FABLES, *SMALL, "--max-iters=1500")
            process = subprocess.Popen(command, cwd=self.folder, stdout=terminal)
        shown = b""
        with contextlib.suppress(OSError):  # how Linux tells that the other side has closed
            while piece := os.read(ours, 4096):
                shown += piece
        os.close(ours)
        self.assertEqual(process.wait(), 0)
        (line,) = [line for line in shown.split(b"\n") if b" 1,000 " in line]
        self.assertEqual(
            [part.split()[0] for part in line.strip(b"\r").split(b"\r")], [b"500", b"1,000", b"1,500"]
        )

    def test_the_log_has_a_row_for_every_progress_line(self):
        self.succeed("train", FABLES, *SMALL, "--max-iters=2600", "--log=history.csv")
        with open(self.folder / "history.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual(list(rows[0]), ["iteration", "seconds", "train_nats", "val_nats"])
        self.assertEqual([row["iteration"] for row in rows], ["500", "1000", "1500", "2000", "2500", "2600"])
        seconds = [float(row["seconds"]) for row in rows]
        self.assertEqual(seconds, sorted(seconds))
        self.assertTrue(all(1 < float(row["train_nats"]) < 4.2 for row in rows))
        self.assertTrue(1 < float(rows[-1]["val_nats"]) < 4.2)

    @unittest.skipIf(matplotlib is None, "matplotlib is not installed")
    def test_the_plot_is_a_picture_with_two_curves_in_it(self):
        self.succeed("train", FABLES, *SMALL, "--max-iters=3000", "--plot=loss.png")
        from matplotlib import image

        pixels = image.imread(self.folder / "loss.png")[..., :3]
        for colour in ("1f77b4", "ff7f0e"):  # the first two of matplotlib's cycle
            rgb = np.array([int(colour[i : i + 2], 16) for i in (0, 2, 4)]) / 255
            self.assertGreater((np.abs(pixels - rgb).max(axis=-1) < 0.02).sum(), 500)

    def test_without_matplotlib_the_plot_says_how_to_get_it_before_training(self):
        self.write("matplotlib.py", "raise ImportError")
        environment = {**os.environ, "PYTHONPATH": str(self.folder)}
        self.refuse("train", "--plot=loss.png", saying="pip install matplotlib", env=environment)
        self.assertFalse((self.folder / "char_rnn.npz").exists())

    def test_the_script_works_alone_in_a_folder(self):
        alone = self.write("char_rnn.py", Path(SCRIPT).read_bytes())
        text = self.write("mine.txt", "one two three " * 50)
        for args in (["train", text, *SMALL, "--max-iters=5"], ["sample", "--length=5"]):
            done = subprocess.run([sys.executable, alone, *args], cwd=self.folder, capture_output=True)
            self.assertEqual((done.returncode, done.stderr), (0, b""))
        done = subprocess.run([sys.executable, alone], cwd=self.folder, capture_output=True, text=True)
        self.assertEqual((done.returncode, len(done.stderr.splitlines())), (2, 1))

    def test_the_start_may_come_from_a_flag_a_file_or_standard_input(self):
        self.succeed("train", FABLES, *SMALL, "--max-iters=10")
        start = "The fox\nsaid"
        path = self.write("start.txt", start.replace("\n", "\r\n"))
        options = ["sample", "--seed=3", "--length=30"]
        expected = self.succeed(*options, "--start", start)
        self.assertTrue(expected.startswith(start))
        self.assertEqual(len(expected), len(start) + 30 + 1)
        self.assertEqual(self.succeed(*options, "--start-file", path), expected)
        self.assertEqual(self.succeed(*options, "--start-file", "-", input=start.encode()), expected)

    @on_posix
    def test_characters_appear_as_they_are_drawn(self):
        self.succeed("train", FABLES, *SMALL, "--max-iters=10")
        command = self.command("sample", "--length", 10**9)
        process = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertEqual(len(process.stdout.read(100)), 100)
        process.stdout.close()  # what "| head" does when it has seen enough
        self.assertEqual(process.stderr.read(), b"")
        process.stderr.close()
        self.assertNotEqual(process.wait(), 0)

    def test_the_advice_at_the_end_follows_from_the_two_losses(self):
        by_heart = self.write("fables.txt", Path(FABLES).read_text(encoding="utf-8")[:3000])
        self.assertIn(
            "fewer --max-iters",
            self.succeed("train", by_heart, *SMALL, "--hidden-size=64", "--max-iters=1000"),
        )
        self.assertIn("more --max-iters", self.succeed("train", FABLES, *SMALL, "--max-iters=200"))

    def test_a_text_too_short_to_hold_out_trains_and_says_so(self):
        out = self.succeed("train", self.write("short.txt", "abc " * 8 + "ab"), *SMALL, "--max-iters=5")
        self.assertIn("training without validation", out)
        self.succeed("sample", "--length=3")

    def test_a_loss_that_is_no_number_stops_training_and_keeps_the_checkpoint(self):
        self.succeed("train", FABLES, *SMALL, "--max-iters=10")
        before = (self.folder / "char_rnn.npz").read_bytes()
        rate = ["--learning-rate=1e38", "--optimizer=sgd"]
        self.refuse("train", FABLES, *SMALL, *rate, saying="try a learning rate lower than 1e+38")
        self.assertEqual((self.folder / "char_rnn.npz").read_bytes(), before)

    def test_every_mistake_is_one_line_and_status_2(self):
        text = self.write("text.txt", "some words to learn " * 10)
        self.succeed("train", text, *SMALL, "--max-iters=1")
        not_utf8 = self.write("latin.txt", b"eins\nzwei drei\nf" + b"\xfcnf" * 50)
        nested = str(self.folder)
        for saying, args in (
            ("none.txt: No such file or directory", ["train", "none.txt"]),
            ("Is a directory", ["train", nested]),
            ("empty.txt is empty", ["train", self.write("empty.txt", "")]),
            ("holds nothing but 'a'", ["train", self.write("one.txt", "a" * 5000)]),
            ("200 characters, but seq_length 32 x batch_size 32 needs at least 1025", ["train", text]),
            ("latin.txt is not UTF-8 text: line 3, character 2 is the byte 0xfc", ["train", not_utf8]),
            ("hidden_size must be a whole number of at least 1, not 0", ["--hidden-size=0"]),
            ("seq_length must be a whole number of at least 1, not -3", ["--seq-length=-3"]),
            ("batch_size must be a whole number of at least 1, not 0", ["--batch-size=0"]),
            ("max_iters must be a whole number of at least 1, not 0", ["--max-iters=0"]),
            ("invalid int value: 'ten'", ["--hidden-size=ten"]),
            ("invalid int value: '2.5'", ["--seq-length=2.5"]),
            ("learning_rate must be a positive number, not 0.0", ["--learning-rate=0"]),
            ("learning_rate must be a positive number, not nan", ["--learning-rate=nan"]),
            ("learning_rate must be a positive number, not inf", ["--learning-rate=inf"]),
            ("val_fraction must be at least 0 and less than 1, not 1.0", ["--val-fraction=1"]),
            ("threshold must be zero or a positive number, not -1.0", ["--threshold=-1"]),
            ("seed must be a whole number of at least 0, not -1", ["--seed=-1"]),
            ("nothing to train: the smooth loss starts at", ["train", text, *SMALL, "--threshold=1000"]),
            ("hidden_size 100000000000000000000 is too large", ["--hidden-size=100000000000000000000"]),
            ("optimizer must be one of adam, adagrad, sgd, not foo", ["--optimizer=foo"]),
            ("Unable to allocate", ["--hidden-size=100000000"]),
            ("folder is missing or read-only", ["--checkpoint=nowhere/char_rnn.npz"]),
            ("it is a folder or a device", ["--checkpoint", nested]),
            ("'' cannot be written: it names no file", ["--checkpoint="]),
            ("'new/' cannot be written: it names no file", ["--checkpoint=new/"]),
            ("loss.pdf cannot be drawn: the picture is a PNG", ["--plot=loss.pdf"]),
            ("folder is missing or read-only", ["--log=nowhere/history.csv"]),
            ("unrecognized arguments: --hiden-size=3", ["--hiden-size=3"]),
            ("learn: No such file or directory", ["learn"]),
            ("none.npz: No such file or directory", ["sample", "none.npz"]),
            ("text.txt is damaged, or not a checkpoint", ["sample", text]),
            ("the model never saw '!' 'é'", ["sample", "--start=é word!"]),
            ("the start text is empty", ["sample", "--start="]),
            ("latin.txt is not UTF-8 text: byte 16 is 0xfc", ["sample", "--start-file", not_utf8]),
            ("length must be a whole number of at least 1, not 0", ["sample", "--length=0"]),
            ("temperature must be zero or a positive number, not -0.5", ["sample", "--temperature=-0.5"]),
            ("temperature must be zero or a positive number, not nan", ["sample", "--temperature=nan"]),
            ("seed must be a whole number of at least 0, not -2", ["sample", "--seed=-2"]),
        ):
            with self.subTest(saying):
                self.refuse(*args, saying=saying)

    def test_a_mistake_in_sampling_is_told_before_anything_is_written(self):
        self.succeed("train", FABLES, *SMALL, "--max-iters=1")
        self.assertEqual(self.run_script("sample", "--start=The", "--temperature=nan").stdout, b"")

    @on_posix
    def test_a_closed_standard_output_is_no_trouble(self):
        done = self.run_script("train", FABLES, *SMALL, "--max-iters=1", preexec_fn=lambda: os.close(1))
        self.assertEqual((done.returncode, done.stderr), (0, b""))

    def test_help_names_every_flag(self):
        for command, flags in (
            (
                "train",
                ["--hidden-size", "--learning-rate", "--checkpoint", "--resume", "--log", "--plot", "--seed"],
            ),
            ("sample", ["--start", "--start-file", "--length", "--temperature", "--seed"]),
        ):
            out = self.succeed(command, "--help")
            self.assertEqual([flag for flag in flags if flag not in out], [])


@unittest.skipUnless((HERE / "README.md").exists(), "README.md is not beside the tests")
class TestReadme(InFolder):
    def test_python_snippets_about_char_rnn_run_as_written(self):
        snippets = re.findall(
            r"```python\n(.*?)```", (HERE / "README.md").read_text(encoding="utf-8"), re.DOTALL
        )
        snippets = [snippet for snippet in snippets if "char_rnn" in snippet]
        self.assertGreater(len(snippets), 0)
        (self.folder / "data").symlink_to(HERE / "data")
        self.write("char_rnn.py", Path(SCRIPT).read_bytes())
        for snippet in snippets:
            done = subprocess.run(
                [sys.executable, "-c", snippet], cwd=self.folder, capture_output=True, text=True
            )
            self.assertEqual((done.returncode, done.stderr), (0, ""), snippet)


if __name__ == "__main__":
    unittest.main()

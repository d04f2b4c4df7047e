# SPDX-License-Identifier: MIT-0
"""What char_rnn.py promises, each test one claim:  python -m unittest

python test_char_rnn.py --speed  prints its training speed beside that of torch and JAX, where installed.
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
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as the script does, which is imported after NumPy here

import numpy as np

import char_rnn
from char_rnn import PARAMETERS, RNN, DataReader, load_checkpoint, save_checkpoint, softmax

if find_spec("torch"):
    import torch

HERE = Path(__file__).resolve().parent
SCRIPT, FABLES = str(HERE / "char_rnn.py"), str(HERE / "data" / "fables.txt")
SHORT = Path(FABLES).read_text(encoding="utf-8")[:3000]
SMALL = ["--hidden-size=16", "--seq-length=8", "--batch-size=4"]  # a model that trains in a blink
ignore = id  # a report that prints nothing


def in_torch(rnn):
    """The same network of torch modules: its parameters by our names, and a function for its loss."""
    H, V, dtype = rnn.hidden_size, rnn.vocab_size, getattr(torch, rnn.dtype.name)
    hidden, out = torch.nn.RNN(V, H, dtype=dtype), torch.nn.Linear(H, V, dtype=dtype)
    arrays = hidden.weight_ih_l0, hidden.weight_hh_l0, out.weight, hidden.bias_ih_l0, out.bias
    places = dict(zip(PARAMETERS, arrays))
    torch.nn.init.zeros_(hidden.bias_hh_l0)
    for name, place in places.items():
        place.data = torch.tensor(getattr(rnn, name))

    def loss_of(inputs, a_prev, targets):
        x = torch.nn.functional.one_hot(torch.tensor(inputs), V).to(dtype)
        a, _ = hidden(x, torch.as_tensor(a_prev)[None])
        z, targets = out(a).flatten(0, 1), torch.tensor(targets).flatten()
        return torch.nn.functional.cross_entropy(z, targets, reduction="sum") / a.shape[1], a

    return places, loss_of


class InFolder(unittest.TestCase):
    """A folder for each test, and the command line in this process (main) or in one of its own (real)."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder.name)
        self.rng = np.random.default_rng(1)
        self.flags = ["train", self.write("text.txt", SHORT), *SMALL]

    def write(self, name, content):
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    def reader(self, text, *args, **options):
        return DataReader(self.write("text.txt", text), *args, **options)

    def files(self):
        return {str(path): hash(path.read_bytes()) for path in Path().iterdir() if path.is_file()}

    def main(self, *args):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = char_rnn.main(args)
            except SystemExit as end:
                status = end.code
        return status, out.getvalue(), err.getvalue()

    def start(self, *args, row=None, script=(SCRIPT,), **options):
        """A real process under way that has printed a row, if one is named by its iteration."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen([sys.executable, *script, *args], **pipes, **options)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        if row:
            next(line for line in process.stdout if line.split()[:1] == [row])
        return process

    def real(self, *args, given=None, **options):
        process = self.start(*args, **options)
        out, err = process.communicate(given)
        return process.returncode, out, err

    def succeed(self, *args, run=None):
        status, out, err = (run or self.main)(*args)
        self.assertEqual((status, err), (0, ""))
        return out

    def train(self, *args):
        return self.succeed(*self.flags, *args)

    def contents(self, path):
        """All that a checkpoint holds, as bytes, but for the seconds that training took."""
        rnn, about = load_checkpoint(path)
        rnn.seconds = about.seconds = 0
        rnn.history = [(iteration, *losses) for iteration, _, *losses in rnn.history]
        return hash(pickle.dumps((rnn, about)))

    def refuse(self, *args, saying, run=None):
        """The command ends with status 2, in a line with `saying` in it, and no file is changed."""
        before = self.files()
        status, out, err = (run or self.main)(*args)
        self.assertEqual((status, self.files()), (2, before), (args, err))
        self.assertRegex(err, r"\A(usage: .*\n( .*\n)*)?char_rnn.py( train)?: error: .*\n\Z")
        self.assertIn(saying, err.splitlines()[-1])
        return out


class TestModel(InFolder):
    def test_reads_the_same_text_as_python_does(self):
        texts = ["plain\n", "naïve “quotes” 語 😀\r\nand a Windows line end\n", "\ufeffa mark", "an old\rMac"]
        for text in [*texts, "a語😀é\r\n" * 100_000]:  # the last is longer than the pieces it is encoded in
            reader = self.reader(text * 3, 2, val_fraction=0)
            expected = "".join(io.TextIOWrapper(io.BytesIO((text * 3).encode()), "utf-8-sig"))
            self.assertEqual("".join(reader.chars[ix] for ix in reader.train_ids.tolist()), expected)
            self.assertEqual(reader.chars, sorted(set(expected)))

    def test_streams_cover_the_text_without_gap_or_overlap_and_never_what_is_held_out(self):
        reader = self.reader("".join(map(chr, range(200, 400))), 5, 3)  # a character tells its place
        self.assertEqual(reader.val_ids.tolist(), list(range(180, 200)))
        for _ in range(2):
            read = []
            while not read or not reader.just_started():
                self.assertEqual(reader.just_started(), not read)
                inputs, targets = reader.next_batch()
                np.testing.assert_array_equal(targets, inputs + 1)
                read.append(inputs)
            columns = np.concatenate(read).T.ravel()  # stream after stream
            np.testing.assert_array_equal(columns, range(179 // 15 * 15))  # less than a batch is left over

    def test_too_short_a_text_names_a_size_that_fits(self):
        for length in (3, 9, 50, 517):
            path = self.write("short.txt", ("abcdefgh" * 100)[:length])
            with self.assertRaisesRegex(ValueError, f"{length} characters") as caught:
                DataReader(path, 32, 17)
            remedy = str(caught.exception).split(": try ")[1]
            self.succeed(path, *remedy.split(), "--hidden-size=4", "--max-iters=2")

    def problem(self, H=5, V=7, T=6, B=3):
        """A float64 model with no zero anywhere, a batch, and a hidden state to start from."""
        rnn = RNN(H, V, T, 0.01, dtype=np.float64, seed=2)
        rnn.ba, rnn.by = self.rng.normal(size=H), self.rng.normal(size=V)
        shape = (T, B) if B else (T,)  # no B is a single sequence, without that axis
        inputs, targets = self.rng.integers(0, V, (2, *shape))
        return rnn, inputs, targets, self.rng.normal(size=(*shape[1:], H))

    def test_softmax_takes_all_numbers_on_any_axis_and_never_overflows(self):
        for x in ([1, 2, 3], (1, 2, 3), np.array([1, 2, 3]), np.array([1, 2, 3], np.uint8), [1.0, 2, 3]):
            np.testing.assert_allclose(softmax(x), np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum(), rtol=1e-14)
        for axis in (0, 1, 2, -1):
            for dtype, rtol in ((np.float32, 1e-5), (np.float64, 1e-13)):
                x = self.rng.normal(size=(2, 3, 4)).astype(dtype)
                y, before = softmax(x, axis), x.copy()
                np.testing.assert_allclose(y, np.exp(x) / np.exp(x).sum(axis, keepdims=True), rtol)
                np.testing.assert_equal((y.dtype, x), (dtype, before))
        with np.errstate(all="raise", under="ignore"):
            np.testing.assert_array_equal(softmax([[1e308, -1e300], [-1e308, -1e308]]), [[1, 0], [0.5, 0.5]])

    def test_forward_and_loss_are_the_handouts_equations_written_out_for_lists_and_arrays(self):
        for B, kind in ((3, np.array), (None, np.array), (3, np.ndarray.tolist), (None, np.ndarray.tolist)):
            rnn, inputs, targets, a_prev = self.problem(B=B)
            a, y_pred = rnn.forward(kind(inputs), kind(a_prev))
            nats = 0
            for b in np.ndindex(inputs.shape[1:]):
                hidden = a_prev[b]
                for t in range(len(inputs)):
                    hidden = np.tanh(rnn.Waa @ hidden + rnn.Wax @ np.eye(7)[inputs[t][b]] + rnn.ba)
                    np.testing.assert_allclose(a[t + 1][b], hidden, atol=1e-13)
                    y = softmax(rnn.Wya @ hidden + rnn.by)
                    np.testing.assert_allclose(y_pred[t][b], y, atol=1e-13)
                    nats -= math.log(y[targets[t][b]])
            self.assertAlmostEqual(rnn.loss(kind(y_pred), kind(targets)), nats / (B or 1), places=12)
        self.assertEqual(rnn.sample(a_prev.tolist(), [3], 9, 0), rnn.sample(a_prev[:, None], 3, 9, 0))
        certain_and_wrong = np.array([[1, 0, 0], [1, 0, 0]], np.float32)
        self.assertTrue(100 < RNN(4, 3, 2, 0.1).loss(certain_and_wrong, [1, 2]) < 1000)  # and not infinite

    def test_gradients_match_central_differences_for_every_parameter(self):
        for sizes in ({}, {"T": 1}, {"B": 1}, {"B": None}, {"T": 1, "B": None}, {"H": 1}, {"V": 2, "T": 9}):
            rnn, inputs, targets, a_prev = self.problem(**sizes)
            batch = inputs, *rnn.forward(inputs, a_prev), targets
            grads = rnn.backward(*batch)
            np.testing.assert_equal(rnn.backward(*(array.tolist() for array in batch)), grads)
            for name, parameter in rnn.parameters().items():
                numeric = np.zeros_like(parameter)
                for place in np.ndindex(parameter.shape):
                    kept = parameter[place]
                    for nudge in (1e-5, -1e-5):
                        parameter[place] = kept + nudge
                        numeric[place] += rnn.loss(rnn.forward(inputs, a_prev)[1], targets) / (2 * nudge)
                    parameter[place] = kept
                self.assertEqual(grads[name].shape, numeric.shape)
                error = np.linalg.norm(numeric - grads[name]) / np.linalg.norm(numeric)
                self.assertLess(error, 1e-6, (name, sizes))

    @unittest.skipUnless(find_spec("torch"), "torch is not installed")
    def test_fifty_iterations_of_train_match_the_same_loop_in_torch_with_every_optimiser(self):
        for rule in (torch.optim.Adam, torch.optim.Adagrad, torch.optim.SGD):
            reader = self.reader("the fox said to the owl that it was late " * 8, 5, 3)
            rnn = RNN(6, reader.vocab_size, 5, 0.05, rule.__name__.lower(), dtype=np.float64)
            rnn.Wya *= 8  # so that some gradients are clipped
            places, loss_of = in_torch(rnn)
            optimiser, passes, clipped = rule(places.values(), lr=0.05), 0, 0
            with mock.patch.object(rnn, "update", wraps=rnn.update) as update:
                rnn.train(reader, max_iters=50, report=ignore)
            reader.position = 0
            for i, ((grads, _), _) in enumerate(update.call_args_list):
                if reader.just_started():
                    a, passes = torch.zeros(1, 3, 6).double(), passes + 1
                inputs, targets = reader.next_batch()
                loss, a = loss_of(inputs, a[-1].detach(), targets)
                self.assertAlmostEqual(rnn.losses[i], loss.item(), delta=1e-10)
                optimiser.zero_grad()
                loss.backward()
                for name, place in places.items():  # those that the caller of update has, unclipped
                    np.testing.assert_allclose(grads[name], place.grad, atol=1e-10, err_msg=name)
                    clipped += (place.grad.abs() > 5).sum().item()
                torch.nn.utils.clip_grad_value_(places.values(), 5)
                rate = 0.05 * min(1, (i + 1) / 5) * (1 + math.cos(math.pi * i / 50)) / 2
                optimiser.param_groups[0]["lr"] = rate
                optimiser.step()
            self.assertGreater(min(clipped, passes), 1)
            for name, w in rnn.parameters().items():
                np.testing.assert_allclose(w, places[name].detach(), atol=1e-10, err_msg=name)

    def test_sampling_frequencies_match_softmax_by_a_chi_square_bound(self):
        V, n, z = 6, 3000, np.log([0.05, 0.1, 0.15, 0.2, 0.2, 0.3])
        rnn = RNN(4, V, 5, 0.1)
        rnn.Wax, rnn.Waa, rnn.by = np.zeros((4, V)), np.zeros((4, 4)), z  # all draws from one distribution
        for temperature in (0.5, 2.0):
            counts = np.bincount(rnn.sample(np.zeros(4), 0, n, temperature, seed=1), minlength=V)
            expected = n * softmax(z / temperature)
            chi_square = ((counts - expected) ** 2 / expected).sum()
            self.assertTrue(0.1 < chi_square < 20.5)  # 5 degrees of freedom: 99.9 % of honest samples

    def test_temperature_zero_takes_the_likeliest_character_after_the_whole_start(self):
        reader, rnn = self.reader("abcdefgh" * 20, 4), RNN(16, 8, 4, 0.1, seed=5)
        start = text = "abcdefgh" * 100
        for _ in range(20):
            y_pred = rnn.forward(char_rnn.encode(text, reader.chars), np.zeros(16))[1]
            text += reader.chars[y_pred[-1].argmax()]
        for temperature in (0, 1e-320):
            self.assertEqual(rnn.predict(reader, start, 20, temperature), text)

    def test_a_repeated_word_is_learned_by_every_optimiser_until_the_threshold(self):
        reader = self.reader("hello " * 400, 12, 4)
        for optimizer, rate in (("adam", 0.01), ("adagrad", 0.1), ("sgd", 0.1)):
            rnn, smooth = RNN(32, reader.vocab_size, 12, rate, optimizer), [12 * math.log(5)]
            for loss in rnn.train(reader, 10**6, threshold=1.0, report=ignore):
                smooth.append(0.99 * smooth[-1] + 0.01 * loss)
            self.assertTrue(smooth[-1] <= 1.0 < min(smooth[:-1]))
            self.assertLess(rnn.evaluate(reader.val_ids), 0.1, optimizer)
            self.assertEqual(rnn.predict(reader, "hel", 21, temperature=0), "hello hello hello hello ")

    def test_copies_a_second_model_and_another_optimiser_learn_as_a_fresh_model_does(self):
        reader = DataReader("text.txt", 8, 4)
        for optimizer in ("adam", "sgd"):
            fresh, rnn = (RNN(16, 53, 8, 0.01, name, 3, np.float64) for name in (optimizer, "adam"))
            fresh.train(reader, max_iters=60, report=ignore)
            rnn.optimizer = optimizer
            save_checkpoint("mine.npz", rnn, reader)
            loaded = load_checkpoint("mine.npz")[0]
            for other in (loaded, copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn)), rnn):
                self.assertEqual(other.train(reader, max_iters=60, report=ignore), fresh.losses)

    def test_train_ends_with_the_best_weights_but_the_untrained_whatever_the_report(self):
        reader, models, calls = DataReader("text.txt", 8, 4), [], []
        for report in (None, lambda rnn: calls.append(rnn.history[-1][0])):
            rnn = RNN(64, reader.vocab_size, 8, 0.01)
            with contextlib.redirect_stdout(io.StringIO()):
                rnn.train(reader, max_iters=1200, report=report)
            models.append(rnn)
        np.testing.assert_equal(*(rnn.parameters() for rnn in models))
        iterations, seconds, train_losses, val_losses = zip(*rnn.history)
        self.assertEqual((calls, iterations), ([0, 500, 1000, 1200], (0, 500, 1000, 1200)))
        self.assertTrue(rnn.evaluate(reader.val_ids) == rnn.best_loss == min(val_losses) < val_losses[-1])
        self.assertTrue(0 < seconds[1] < seconds[2] < seconds[3] == rnn.seconds)
        means = [np.mean(rnn.losses[start:stop]) / 8 for start, stop in zip(calls, calls[1:])]
        np.testing.assert_allclose(train_losses, [math.nan, *means])  # each since the row before
        rnn = RNN(16, reader.vocab_size, 8, 30.0)
        rnn.train(reader, max_iters=5, report=ignore)
        self.assertTrue(rnn.history[0][3] < rnn.history[1][3] == rnn.best_loss)

    def test_evaluate_is_the_mean_over_streams_of_at_least_2000_characters(self):
        rnn, ids = RNN(32, 62, 8, 0.01, dtype=np.float64), DataReader(FABLES, 8).train_ids
        for length, streams in ((2, 1), (3999, 1), (4000, 2), (12_500, 6)):
            steps = (length - 1) // streams
            texts = [ids[start : start + steps + 1] for start in range(0, streams * steps, steps)]
            nats = [rnn.loss(rnn.forward(text[:-1], np.zeros(32))[1], text[1:]) / steps for text in texts]
            self.assertAlmostEqual(rnn.evaluate(ids[:length].tolist()), np.mean(nats), places=12)

    def test_train_refuses_a_reader_of_other_sizes(self):
        for sizes in ((2, 5), (3, 6)):
            with self.assertRaisesRegex(ValueError, r"\(3, 5\)"):
                RNN(4, *sizes, 0.1).train(self.reader("abc" * 50, 5))


@unittest.skipUnless(os.name == "posix", "needs a POSIX system")
class TestSystem(InFolder):
    def test_a_run_killed_or_stopped_resumes_bit_for_bit_with_the_printed_command(self):
        Path("char_rnn.npz").symlink_to("elsewhere.npz")  # and a link stays a link
        flags = [*self.flags, "--seq-length=3", "--max-iters=2200"]
        self.succeed(*flags, "--checkpoint=straight.npz")
        flags += ["--log=a log.csv"]
        for row, end in (("0", "SIGINT"), ("1,000", "SIGKILL"), ("1,500", "SIGKILL"), ("2,000", "SIGINT")):
            process = self.start(*flags, row=row)
            process.send_signal(getattr(signal, end))
            out, err = process.communicate()
            self.assertEqual(Path("char_rnn.npz").exists(), row != "0")
            flags += ["--resume"] * (row == "1,000")
            if end == "SIGINT":
                self.assertEqual((process.returncode, err), (130, ""))
                command = re.search("stopped; to .*:  python (.*)", out)[1]
                self.assertEqual("--resume" in command, row != "0")
        done = subprocess.run(f"{sys.executable} {command}", shell=True, capture_output=True)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertEqual(self.contents("straight.npz"), self.contents("elsewhere.npz"))
        self.assertTrue(Path("char_rnn.npz").is_symlink())

    def test_what_was_trained_before_survives_a_kill_or_head_and_becomes_old_at_the_first_save(self):
        self.train("--max-iters=10", "--log=log.csv")
        before = self.files()
        for size, end in ((512, signal.SIGKILL), (256, signal.SIGPIPE)):  # slow, so as not to save first
            process = self.start(*self.flags, f"--hidden-size={size}", "--log=log.csv", row="0")
            if end == signal.SIGKILL:
                process.kill()
            process.stdout.close()  # all that "| head" does when it has seen enough
            self.assertEqual((process.stderr.read(), process.wait()), ("", -end))
        self.refuse(*self.flags, "--log=nowhere/log.csv", saying="cannot be written")
        self.assertEqual(self.files(), before)
        self.assertIn("char_rnn.npz.old", self.train("--max-iters=600"))  # at the first of two saves
        self.assertEqual(self.files()["char_rnn.npz.old"], before["char_rnn.npz"])

    def test_a_full_disk_or_a_read_only_folder_is_told_before_training_and_costs_nothing(self):
        import resource

        self.train("--max-iters=100")
        limit = Path("char_rnn.npz").stat().st_size // 2  # no file may grow past half a checkpoint
        full = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
        as_user = (  # root may write anywhere: it becomes an ordinary user once a command has imported all
            "import os, sys, char_rnn; char_rnn.main(['test', 'char_rnn.npz', 'text.txt']); print('after')\n"
            "os.geteuid() or os.setuid(65534); sys.exit(char_rnn.main(sys.argv[1:]))"
        )
        self.addCleanup(os.chmod, ".", 0o755)
        for mode, options in ((0o755, {"preexec_fn": full}), (0o555, {"script": ("-c", as_user)})):
            os.chmod(".", mode)
            for args in ([], ["--resume", "--max-iters=9000"]):
                run = partial(self.real, env={**os.environ, "PYTHONPATH": str(HERE)}, **options)
                out = self.refuse(*self.flags, *args, saying="npz cannot be written", run=run)
                self.assertEqual(out.rpartition("after\n")[2], "")


class TestCommandLine(InFolder):
    def test_two_runs_on_one_checkpoint_leave_a_whole_one(self):
        flags = [*self.flags, "--max-iters=600", "--checkpoint=both.npz"]
        for process in [self.start(*flags, f"--seed={seed}") for seed in (0, 1)]:
            self.assertEqual((process.communicate()[1], process.returncode), ("", 0))
        seed = load_checkpoint("both.npz")[1].settings["seed"]
        self.train("--max-iters=600", f"--seed={seed}", "--checkpoint=alone.npz")
        self.assertEqual(self.contents("both.npz"), self.contents("alone.npz"))

    def test_a_damaged_checkpoint_is_refused_or_gives_the_very_same_values(self):
        self.train("--max-iters=20")
        whole, same = Path("char_rnn.npz").read_bytes(), self.contents("char_rnn.npz")
        damaged = [b"", b"PK" + bytes(1000), self.rng.bytes(5000), whole[:-1]]
        for a, b, bit in self.rng.integers(0, (len(whole), len(whole), 8), (100, 3)):
            moved, flipped = whole[b : b + 40], bytes([whole[a] ^ 1 << bit])
            damaged += [whole[:a], whole[:a] + moved + whole[a + 40 :], whole[:a] + flipped + whole[a + 1 :]]
        refused = 0
        for content in damaged:
            try:
                self.assertEqual(self.contents(self.write("damaged.npz", content)), same)
            except ValueError as error:
                self.assertIn("damaged.npz is damaged, or no checkpoint", str(error))
                refused += 1
        self.assertGreater(refused, 200)

    def test_forged_arrays_are_refused_and_nothing_in_a_checkpoint_is_run_or_written_to(self):
        class Trap:
            def __reduce__(self):
                return (Path.touch, (Path("witness"),))

        self.train("--max-iters=20")
        with np.load("char_rnn.npz") as file:
            whole = dict(file)

        about, floats = json.loads(str(whole["about"])), whole["m_Waa"].astype(np.float64)
        forged = [{"Wax": whole["Wax"].T}, {"m_Waa": floats}, {"history": whole["history"][:, :3]}]
        forged += [{"more": whole["by"]}, *({name: None} for name in whole)]  # None takes it away
        for change in ({}, {"chars": ["a"]}, {"iteration": "x"}, {"model": [8, 0.01, "rmsprop", "float32"]}):
            forged.append({"about": json.dumps(change and about | change)})
        for changes in [*forged, {"Wax": np.array([Trap()], dtype=object)}]:
            arrays = (whole | changes).items()
            np.savez("forged.npz", **{name: array for name, array in arrays if array is not None})
            for args in (["sample", "forged.npz"], [*self.flags, "--resume", "--checkpoint=forged.npz"]):
                self.refuse(*args, saying="forged.npz is damaged, or no checkpoint")
        with np.load("forged.npz", allow_pickle=True) as file:
            file["Wax"]  # the trap does work where pickles are allowed
        self.assertTrue(Path("witness").exists())
        about["settings"]["log"] = "stolen.csv"
        np.savez("forged.npz", **whole | {"about": json.dumps(about)})
        self.train("--resume", "--max-iters=30", "--checkpoint=forged.npz")
        self.assertFalse(Path("stolen.csv").exists())

    def test_rows_and_samples_come_every_500_iterations_and_a_finished_run_is_only_drawn(self):
        tiny = ["text.txt", "--hidden-size=4", "--seq-length=1", "--batch-size=1", "--optimizer=sgd"]
        out = self.succeed(*tiny, "--max-iters=9000")
        out += self.succeed("text.txt", "--resume", "--max-iters=10250")  # the settings come back
        row = r"^( *([\d,]+) +[\d.]+ +(?:-|(\d\.\d+)) +(\d\.\d+) +(?:-|\d+:\d\d)  (.+))$"
        lines, iterations, train_losses, val_losses, samples = zip(*re.findall(row, out, re.MULTILINE))
        expected = [0, *range(500, 10_001, 500), 10_250]
        self.assertEqual(list(iterations), [f"{i:,}" for i in expected])
        self.assertTrue(max(map(len, lines)) < 80 and min(map(len, samples)) >= 20 and "\r" not in out)
        self.assertGreater(len(out.split(" 10,000 ")[1].split(" 10,250 ")[0]), 300)  # a longer sample
        before = self.files()
        self.assertIn("already at 10250 of 10250", self.succeed("text.txt", "--resume", "--log=log.csv"))
        self.assertEqual(self.files(), before | {"log.csv": hash(Path("log.csv").read_bytes())})
        header, *log = (line.split(",") for line in Path("log.csv").read_text().splitlines())
        self.assertEqual(header, ["iteration", "seconds", "train_nats", "val_nats"])
        numbers, seconds, *losses = zip(*log)
        self.assertEqual(numbers, tuple(map(str, expected)))
        self.assertEqual(sorted(seconds, key=float), list(seconds))
        for printed, logged in zip((train_losses, val_losses), losses):
            self.assertEqual(printed, tuple(loss and f"{float(loss):.3f}" for loss in logged))

    @unittest.skipUnless(find_spec("matplotlib"), "matplotlib is not installed")
    def test_the_plot_is_a_picture_that_changes_with_the_losses(self):
        pictures = set()
        for iterations in (20, 60):
            self.train("--plot=loss.png", f"--max-iters={iterations}")
            pictures.add(Path("loss.png").read_bytes())
        self.assertEqual([picture[:8] for picture in pictures], [b"\x89PNG\r\n\x1a\n"] * 2)

    def test_the_script_works_alone_in_a_folder_with_a_start_from_a_flag_a_file_or_standard_input(self):
        start, options = "The owl\nsaid", ["sample", "--seed=3", "--length=30"]
        alone = self.write("alone.py", Path(SCRIPT).read_bytes())
        run = partial(self.real, script=(alone,), stdin=subprocess.PIPE, given=start)
        self.succeed(*self.flags, "--max-iters=5", run=run)
        out = self.succeed(*options, "--start", start)
        self.assertTrue(out.startswith(start) and len(out) == len(start) + 30 + 1)
        for source in (self.write("start.txt", start.replace("\n", "\r\n")), "-"):
            self.assertEqual(self.succeed(*options, "--start-file", source, run=run), out)
        self.assertNotEqual(self.succeed("sample"), self.succeed("sample"))  # another seed each time
        self.refuse(saying="fables.txt", run=run)
        self.write("matplotlib.py", "raise ImportError('no module matplotlib')")
        self.assertEqual(self.refuse(*self.flags, "--plot=a.png", saying="no module matplotlib", run=run), "")

    def test_the_remark_at_the_end_is_made_only_where_it_is_true(self):
        large = [*SMALL, "--hidden-size=64", "--max-iters=1000"]
        for remark, args in (
            ("which is overfitting", ["text.txt", *large]),
            ("worse than guessing", [FABLES, *large, "--learning-rate=3", "--max-iters=500"]),
            ("its parameters are kept", [FABLES, *SMALL, "--max-iters=500"]),
            ("its parameters are kept", [FABLES, *SMALL, "--threshold=28"]),
            ("256 hidden units, 97,598 parameters.*loss [12]\\.", ["--max-iters=20"]),  # all else by default
            ("0 to validate", [self.write("a.txt", "abc " * 4), *SMALL, "--batch-size=1", "--max-iters=5"]),
        ):
            out = self.succeed(*args)
            self.assertRegex(out, f"(?s){remark}")
            self.assertLessEqual(set(re.findall("which is overfitting|worse than guessing", out)), {remark})

    def test_sample_and_test_use_the_best_weights_and_the_checkpoint_holds_the_last_too(self):
        self.train("--hidden-size=64", "--max-iters=1000")
        rnn, about = load_checkpoint("char_rnn.npz")
        ids = DataReader("text.txt", 8, 4).val_ids
        last, (_, best, after) = rnn.evaluate(ids), [row[3] for row in rnn.history]
        rnn.use_best()
        self.assertTrue(rnn.evaluate(ids) == best < last == after)
        expected = rnn.predict(about, about.chars[0], 60, temperature=0)
        self.assertEqual(self.succeed("sample", "--temperature=0", "--length=60"), expected + "\n")
        cow = "The cow said to the owl that it was late.\n" * 9
        self.write("cow.txt", cow.replace("a", "aö☂"))
        out = self.succeed("test", "char_rnn.npz", "cow.txt", "--show=60")
        self.assertIn("left out, since the model never saw them: 'ö' '☂'", out)
        cost = rnn.evaluate(char_rnn.encode(cow, about.chars))
        for name, nats in (("the model", cost), ("guessing", math.log(rnn.vocab_size))):
            figures = f"{nats:.4f} nats ({nats / math.log(2):.4f} bits) per character"
            self.assertIn(f"{name}: {figures}, perplexity {math.exp(nats):.2f}\n", out)
        table = re.findall(r"^ +([\d.]+) nats  (\S+)$", out, re.MULTILINE)
        self.assertEqual((len(table), table), (10, sorted(table, key=lambda row: -float(row[0]))))
        self.assertLessEqual({word for _, word in table}, set(cow[1:60].split()))

    def test_every_mistake_is_told_in_a_line_and_changes_nothing(self):
        go, resume = f"train text.txt {' '.join(SMALL)}", "train text.txt --resume"
        self.write("text.txt", "some words to learn " * 10)
        self.write("one.txt", "1")
        self.write("latin.txt", b"eins\nzwei\ndrei f\xfcnf")
        self.write("wide.txt", "\ufefftext".encode("utf-16-be"))
        self.succeed(*go.split(), "--max-iters=1")
        for saying, *commands in (
            ("none.txt", "train none.txt", "sample none.txt", f"{resume} --checkpoint=none.txt"),
            ("neither a command (train, sample, test) nor a file", "sampel"),
            ("directory", "train .", "sample ."),
            ("at least 2 are needed", "train one.txt", f"train {os.devnull}", "test char_rnn.npz one.txt"),
            ("is not UTF-8 text (see line 3): save it as UTF-8", "train latin.txt"),
            ("looks like UTF-16", "train wide.txt"),
            ("try --batch-size 6", "train text.txt"),
            ("must be", "--seq-length=-3", "--learning-rate=nan", "--val-fraction=1"),
            ("nothing to train", "--max-iters=0", f"{go} --threshold=1000"),
            ("argument", "--optimizer=rmsprop", "--hidden-size=ten", "--hiden-size=3"),
            ("non-negative", "--seed=-1"),
            ("below 1e+38", f"{go} --learning-rate=1e38 --optimizer=sgd"),
            ("llocate", "--hidden-size=1000000000"),
            ("cannot be written", f"{go} --checkpoint=nowhere/char_rnn.npz"),
            ("a file of its own", f"{go} --log=text.txt", f"{go} --checkpoint=text.txt"),
            ("a file of its own", f"{go} --plot=char_rnn.npz.old", f"{go} --log=./char_rnn.npz"),
            ("a folder or a device", f"{go} --log=.", f"{go} --checkpoint=", f"{go} --log={os.devnull}"),
            ("hidden_size 16, not 17", f"{resume} --hidden-size=17"),
            ("another text", "--resume"),
            ("text.txt is damaged, or no checkpoint", "sample text.txt"),
            ("the model never saw '!' 'é'", "sample --start=é!"),
            ("temperature", "sample --temperature=-0.5", "sample --temperature=nan"),
        ):
            for command in commands:
                self.refuse(*command.split(), saying=saying)

    def test_python_snippets_about_char_rnn_run_as_written_and_print_what_stands_below_them(self):
        readme = (HERE / "README.md").read_text(encoding="utf-8")
        snippets = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", readme, re.DOTALL)
        self.write("char_rnn.py", Path(SCRIPT).read_bytes())
        Path("data").symlink_to(HERE / "data")
        snippets = [(code, printed) for code, printed in snippets if "char_rnn" in code]
        self.assertTrue(any(printed for _, printed in snippets))
        for code, printed in snippets:
            out = self.succeed(code, run=partial(self.real, script=("-c",)))
            self.assertIn(printed, (out, ""))


def peers(rnn):
    """For each peer, an iteration of training: from a hidden state and a batch to the next and the loss."""

    def ours(a_prev, inputs, targets):
        a, y_pred = rnn.forward(inputs, a_prev)
        loss = rnn.loss(y_pred, targets)
        rnn.update(rnn.backward(inputs, a, y_pred, targets))
        return a[-1], loss

    yield "ours", ours
    if find_spec("torch"):
        places, loss_of = in_torch(rnn)
        optimiser = torch.optim.Adam(places.values(), lr=rnn.learning_rate)

        def of_torch(a_prev, inputs, targets):
            loss, a = loss_of(inputs, a_prev, targets)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_value_(places.values(), 5)
            optimiser.step()
            return a[-1].detach(), loss.item()

        yield "torch", of_torch
    if find_spec("jax"):
        import jax
        import jax.numpy as jnp

        def loss_of_jax(w, a_prev, inputs, targets):
            def cell(a, from_x):
                return (jnp.tanh(a @ w["Waa"] + from_x),) * 2

            a_last, a = jax.lax.scan(cell, a_prev, w["Wax"][inputs] + w["ba"])
            log_y = jax.nn.log_softmax(a @ w["Wya"] + w["by"])
            return -jnp.take_along_axis(log_y, targets[..., None], -1).sum() / len(a_prev), a_last

        @jax.jit
        def update(a, inputs, targets, w, m, v, t):
            (loss, a), grads = jax.value_and_grad(loss_of_jax, has_aux=True)(w, a, inputs, targets)
            for name in PARAMETERS:
                g = jnp.clip(grads[name], -5, 5)
                m[name] = 0.9 * m[name] + 0.1 * g
                v[name] = 0.999 * v[name] + 0.001 * g**2
                m_hat, v_hat = m[name] / (1 - 0.9**t), v[name] / (1 - 0.999**t)
                w[name] -= rnn.learning_rate * m_hat / (jnp.sqrt(v_hat) + 1e-8)
            return loss, a, w, m, v, t + 1

        groups = rnn.parameters(), rnn.m, rnn.v
        state = *({name: jnp.array(x.T) for name, x in group.items()} for group in groups), 1.0

        def of_jax(*batch):
            nonlocal state
            loss, a, *state = update(*batch, *state)
            return a, float(loss)

        yield "jax", of_jax


def speed(rounds=5, seconds=0.7):
    """Print characters per second of training, the median over rounds in which the peers take turns."""
    names = [name for name, _ in peers(RNN(2, 2, 2, 0.1))]
    titles = names + [f"ours/{name}" for name in names[1:]]
    print("hidden x steps x streams", *(f"{title:>11}" for title in titles))
    for H, T, B in ((100, 25, 1), (100, 25, 32), (128, 32, 16), (128, 50, 50), (256, 64, 64)):
        reader = DataReader(FABLES, T, B)
        steps, rates = dict(peers(RNN(H, reader.vocab_size, T, 2e-3))), {name: [] for name in names}
        for name in names * rounds:
            a, _ = steps[name](np.zeros((B, H), np.float32), *reader.next_batch())  # compiled, and warm
            started, done = time.perf_counter(), 0
            while time.perf_counter() < started + seconds:
                a, _ = steps[name](a, *reader.next_batch())
                done += T * B
            rates[name].append(done / (time.perf_counter() - started))
        medians = [np.median(rates[name]) for name in names]
        cells = [f"{rate:,.0f}" for rate in medians] + [f"{medians[0] / rate:.2f}" for rate in medians[1:]]
        print(f"{f'{H} x {T} x {B}':24}", *(f"{cell:>11}" for cell in cells), flush=True)


if __name__ == "__main__":
    speed() if "--speed" in sys.argv else unittest.main()

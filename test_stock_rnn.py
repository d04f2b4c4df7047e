# SPDX-License-Identifier: MIT-0
"""Tests of stock_rnn.py: what a reader would doubt.

python -m unittest test_stock_rnn
"""

import contextlib
import copy
import csv
import hashlib
import io
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

import numpy as np

try:
    import resource
except ImportError:
    resource = None
try:
    import torch
except ImportError:
    raise unittest.SkipTest("torch is not installed") from None

import stock_rnn
from stock_rnn import RNN, StockDataset, forecast, load_prices, split, train

SCRIPT = Path(stock_rnn.__file__).resolve()
PRICES = 8000 * np.exp(np.cumsum(np.random.default_rng(0).normal(0, 0.03, 300)))
SINE = 100 + 10 * np.sin(np.arange(600) * 0.2)
on_posix = unittest.skipIf(resource is None, "needs a POSIX system")
torch.set_num_threads(1)  # as the command line does for small models
QUICK = ("--epochs", "2", "--hidden-size", "4", "--seq-length", "5")


def main(*argv):
    """The command line, in this process: (exit status, stdout, stderr). Leaves the signal handlers as they were."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    signals = [
        number for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGPIPE", None)) if number
    ]
    handlers = {number: signal.getsignal(number) for number in signals}
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = stock_rnn.main([str(arg) for arg in argv])
    except SystemExit as stop:
        status = stop.code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    return status, *texts


def start(*argv, **options):
    """The command line as a process of its own."""
    command = [sys.executable, str(SCRIPT), *map(str, argv)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def write_csv(path, prices, header="open"):
    Path(path).write_text("\n".join([header, *map(repr, map(float, prices))]) + "\n")
    return path


class InFolder(unittest.TestCase):
    """A test with an empty folder for its files."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.file = self.folder / "prices.csv"
        self.checkpoint = self.folder / "model.pt"

    def write(self, text):
        self.file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return self.file

    def assert_one_line(self, result, *words):
        status, _, err = result
        self.assertEqual((status, err.count("\n"), err.endswith("\n")), (2, 1, True), err)
        self.assertNotIn("Traceback", err)
        for word in words:
            self.assertIn(word, err)


class Windows(unittest.TestCase):
    def test_windows_and_targets_are_the_prices_from_the_index_on(self):
        low, high = PRICES.min(), PRICES.max()
        for normalise in ("window", "range"):
            data = StockDataset(PRICES, 20, normalise)
            self.assertEqual(len(data), 280)
            for i in (0, 7, 279):
                expected = PRICES[i : i + 21]
                if normalise == "window":
                    expected = (expected / expected[-2] - 1) / np.std(PRICES[1:] / PRICES[:-1] - 1)
                else:
                    expected = 2 * (expected - low) / (high - low) - 1
                x, target = data[i]
                self.assertEqual((x.shape, x.dtype), ((20, 1), torch.float32))
                self.assertEqual((target.shape, target.dtype), ((1,), torch.float32))
                np.testing.assert_allclose(torch.cat([x[:, 0], target]), expected, rtol=0, atol=2e-6)

    def test_a_batch_is_its_items(self):
        for normalise in ("window", "range"):
            data = StockDataset(PRICES, 20, normalise)
            for index in ([3, 279, 0, 3], torch.tensor([3, 279, 0, 3])):
                x, target = data[index]
                self.assertEqual((x.shape, target.shape), ((4, 20, 1), (4, 1)))
                for row, i in enumerate((3, 279, 0, 3)):
                    self.assertTrue(torch.equal(x[row], data[i][0]) and torch.equal(target[row], data[i][1]))

    def test_torchs_dataloader_takes_it_item_by_item_and_by_batch_indices(self):
        data = StockDataset(PRICES, 20)
        items = list(torch.utils.data.DataLoader(data, 100))
        batches = torch.utils.data.BatchSampler(range(280), 100, drop_last=False)
        whole = list(torch.utils.data.DataLoader(data, sampler=batches, batch_size=None))
        self.assertEqual(len(items), 3)
        for (x, target), (other_x, other_target) in zip(items, whole, strict=True):
            self.assertTrue(torch.equal(x, other_x) and torch.equal(target, other_target))
        self.assertEqual(len(list(data)), 280)

    def test_windows_are_views_of_four_bytes_a_price(self):
        prices = np.repeat(PRICES, 100)
        data = StockDataset(prices, 500)
        self.assertEqual(data.windows.untyped_storage().nbytes(), 4 * len(prices))
        self.assertIs(data.prices, prices)

    def test_a_thousand_times_the_price_gives_the_same_inputs(self):
        x, target = StockDataset(PRICES, 20)[:]
        for factor in (1000, 1e-6):
            other_x, other_target = StockDataset(PRICES * factor, 20)[:]
            np.testing.assert_allclose(other_x, x, rtol=0, atol=1e-6)
            np.testing.assert_allclose(other_target, target, rtol=0, atol=1e-6)

    def test_to_price_leads_every_target_back_to_its_price(self):
        for normalise, exactness in (("window", 3e-8), ("range", 3e-7)):
            data = StockDataset(PRICES, 20, normalise)
            target = data[:][1]
            np.testing.assert_allclose(data.to_price(target, range(280))[:, 0], PRICES[20:], rtol=exactness)
            np.testing.assert_allclose(data.to_price(target[:, 0], range(280)), PRICES[20:], rtol=exactness)
            np.testing.assert_allclose(data.to_price(target[-1], 279), PRICES[-1:], rtol=exactness)
            np.testing.assert_allclose(data.to_price(target[-1], -1), PRICES[-1:], rtol=exactness)

    def test_no_target_is_in_two_parts_and_none_is_left_out(self):
        parts = split(PRICES, 20)
        targets = np.concatenate([part.prices[20:] for part in parts])
        np.testing.assert_array_equal(targets, PRICES[20:])
        self.assertEqual([len(part) for part in parts], [190, 45, 45])

    def test_the_training_set_never_sees_later_prices(self):
        for normalise in ("window", "range"):
            other = PRICES.copy()
            other[210:] *= np.linspace(3, 9, 90)
            parts, others = split(PRICES, 20, normalise=normalise), split(other, 20, normalise=normalise)
            self.assertEqual({part.scale for part in (*parts, *others)}, {parts[0].scale})
            for mine, changed in zip(parts[0][:], others[0][:]):
                self.assertTrue(torch.equal(mine, changed))

    def test_prices_and_sizes_that_cannot_be_are_refused(self):
        for prices, size, mode, words in (
            (np.ones(50), 5, "window", "nothing to learn"),
            (np.ones(50), 5, "range", "nothing to learn"),
            (PRICES[:20], 20, "window", "at least 21"),
            (PRICES, 0, "window", "at least 1"),
            (PRICES, 2.5, "window", "2.5"),
            (PRICES, 5, "minmax", "minmax"),
            (np.append(PRICES, np.nan), 5, "range", "nan"),
            (np.append(PRICES, 0), 5, "window", "above zero"),
        ):
            with self.subTest(words), self.assertRaisesRegex(ValueError, words):
                StockDataset(prices, size, mode)
        for fractions in ((0, 0.1), (0.5, 0.5), (float("nan"), 0.1)):
            with self.assertRaises(ValueError):
                split(PRICES, 5, *fractions)

    def test_the_number_of_prices_that_split_asks_for_is_enough(self):
        for size, val, test in ((20, 0.15, 0.15), (1, 0.01, 0.3), (7, 0.3, 0.001)):
            with self.assertRaises(ValueError) as told:
                split(PRICES[:2], size, val, test)
            needed = int(str(told.exception).split()[-1])
            prices = np.exp(np.cumsum(np.random.default_rng(1).normal(0, 0.01, needed)))
            with self.assertRaises(ValueError):
                split(prices[:-1], size, val, test)
            if size > 1:
                split(prices, size, val, test)


class Model(unittest.TestCase):
    def test_forward_is_the_recurrence_written_by_hand(self):
        torch.manual_seed(1)
        model = RNN(hidden_size=7, num_layers=2)
        torch.nn.init.normal_(model.linear.weight)
        torch.nn.init.normal_(model.linear.bias)
        W = {name: value.detach().numpy() for name, value in model.named_parameters()}
        x = torch.randn(5, 11, 1)
        sequence = x.numpy()
        for layer in range(2):
            a, states = np.zeros((5, 7)), []
            for t in range(11):
                z = sequence[:, t] @ W[f"rnn.weight_ih_l{layer}"].T + a @ W[f"rnn.weight_hh_l{layer}"].T
                a = np.tanh(z + W[f"rnn.bias_ih_l{layer}"] + W[f"rnn.bias_hh_l{layer}"])
                states.append(a)
            sequence = np.stack(states, axis=1)
        expected = a @ W["linear.weight"].T + W["linear.bias"]
        np.testing.assert_allclose(model(x).detach(), expected, rtol=0, atol=1e-6)

    def test_the_untrained_model_is_the_naive_forecast(self):
        figures = stock_rnn.test(RNN(hidden_size=4), StockDataset(PRICES, 20))
        self.assertAlmostEqual(figures["theil_u"], 1, places=12)
        np.testing.assert_allclose(forecast(RNN(4), PRICES, 3), PRICES[-1])

    def test_a_noiseless_sine_is_predicted(self):
        for normalise in ("window", "range"):
            train_set, val_set, test_set = split(SINE, 10, normalise=normalise)
            torch.manual_seed(0)
            model = RNN(hidden_size=16)
            train(model, train_set, val_set, epochs=40, learning_rate=5e-3)
            figures = stock_rnn.test(model, test_set)
            self.assertLess(figures["theil_u"], 0.1)
            self.assertGreater(figures["direction"], 0.95)
            after = 100 + 10 * np.sin(np.arange(600, 605) * 0.2)
            following = forecast(model, SINE, 5, 10, normalise, train_set.scale)
            np.testing.assert_allclose(following, after, atol=1)

    def test_the_figures_are_those_of_their_definitions(self):
        torch.manual_seed(0)
        model, data = RNN(4), StockDataset(PRICES, 5)
        torch.nn.init.normal_(model.linear.weight)
        figures = stock_rnn.test(model, data)
        x, target = data[:]
        output = model(x).detach()
        predicted, true, last = data.to_price(output[:, 0], range(295)), PRICES[5:], PRICES[4:-1]
        rmse, naive = (np.mean((guess - true) ** 2) ** 0.5 for guess in (predicted, last))
        expected = {
            "loss": ((output - target) ** 2).mean().item(),
            "rmse": rmse,
            "mae": np.mean(abs(predicted - true)),
            "naive_rmse": naive,
            "theil_u": rmse / naive,
            "direction": np.mean((predicted > last) == (true > last)),
        }
        self.assertEqual(figures.keys(), expected.keys())
        for name, value in expected.items():
            self.assertAlmostEqual(figures[name] / value, 1, places=5, msg=name)

    def test_the_weights_kept_are_those_of_the_best_epoch(self):
        train_set, val_set, _ = split(PRICES, 5)
        torch.manual_seed(0)
        model = RNN(16)
        history = train(model, train_set, val_set, epochs=30, learning_rate=0.02)
        self.assertNotEqual(np.argmin(history["val_loss"]), 29)  # or this test would show nothing
        self.assertEqual(stock_rnn.evaluate(model, val_set)[0], min(history["val_loss"]))

    def test_one_seed_gives_one_history_and_another_seed_another(self):
        train_set, val_set, _ = split(PRICES, 5)

        def history(seed):
            torch.manual_seed(seed)
            return train(RNN(8), train_set, val_set, epochs=3)

        self.assertEqual(history(0), history(0))
        self.assertNotEqual(history(0), history(1))

    def test_training_goes_on_exactly_from_a_state(self):
        train_set, val_set, _ = split(PRICES, 5)
        torch.manual_seed(0)
        model, states = RNN(8), []
        history = train(model, train_set, val_set, epochs=6, report=states.append)
        torch.manual_seed(99)
        other = RNN(8)
        self.assertEqual(train(other, train_set, val_set, epochs=6, state=copy.deepcopy(states[2])), history)
        for mine, its in zip(model.parameters(), other.parameters()):
            self.assertTrue(torch.equal(mine, its))

    def test_a_loss_that_is_no_number_ends_training(self):
        train_set, val_set, _ = split(PRICES, 5)
        with self.assertRaisesRegex(FloatingPointError, "lower than"):
            train(RNN(8), train_set, val_set, epochs=30, learning_rate=1e30)


class Formats(InFolder):
    def load(self, text, *args):
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            prices = load_prices(self.write(text), *args)
        self.assertEqual((prices.dtype, prices.ndim), (np.float64, 1))
        return prices.tolist(), err.getvalue()

    def test_every_usual_form_of_file_is_read(self):
        for name, text, column in (
            ("plain", "time,open\n2020-01-01,1.5\n2020-01-02,2.5\n2020-01-03,4\n", "open"),
            ("another case", "Date,Open,Close\n2020-01-01,1.5,7\n2020-01-02,2.5,7\n2020-01-03,4,7\n", "open"),
            ("a dotted name", '"","BTC.open"\n"a",1.5\n"b",2.5\n"c",4\n', "BTC.open"),
            (
                "quotes",
                '"date","note","open"\n2020-01-01,"a,b","1.5"\n2020-01-02,,2.5\n2020-01-03,,4\n',
                "open",
            ),
            ("byte-order mark", "\ufeffopen\r\n1.5\r\n2.5\r\n4\r\n", "open"),
            ("semicolons", "time;open\n1;1.5\n2;2.5\n3;4", "open"),
            ("comment", "# from somewhere, in 2020\nopen,x\n1.5,0\n2.5,0\n4,0\n", "open"),
            ("a line of address", "https://www.example.org\nunix,open\n3,1.5\n4,2.5\n5,4\n", "open"),
            (
                "zones",
                "time,open\n2020-01-01 00:00+01:00,1.5\n2020-01-01 00:00Z,2.5\n2020-01-01 01:00 UTC,4\n",
                "open",
            ),
        ):
            with self.subTest(name):
                self.assertEqual(self.load(text, column), ([1.5, 2.5, 4], ""))

    def test_headerless_klines_are_read_in_milliseconds_and_microseconds(self):
        rest = "9,9,9,9,1,2,3,4,5,0"
        text = f"1735603200000,1.5,{rest}\n1735689600000000,2.5,{rest}\n1735776000000000,4,{rest}\n"
        self.assertEqual(self.load(text), ([1.5, 2.5, 4], ""))
        self.assertEqual(self.load(text, "close")[0], [9, 9, 9])

    def test_newest_first_is_turned_round_and_told(self):
        for times in (
            "2020-01-03 2020-01-02 2020-01-01",
            "1600000100 1600000050 999999999",
            "86400 0.5 -630979200",  # 1950
            "1.6000001e+09 1.6e+09 9e+08",  # as np.savetxt writes them
        ):
            rows = [f"{moment},{price}" for moment, price in zip(times.split(), (4, 2.5, 1.5))]
            prices, told = self.load("\n".join(["date,open", *rows]))
            self.assertEqual(prices, [1.5, 2.5, 4])
            self.assertRegex(told, "sorted by its column date\n$")

    def test_a_word_that_holds_the_word_time_is_no_time_column(self):
        self.write("sentiment,open\n3,10\n1,11\n2,12\n")
        np.testing.assert_array_equal(load_prices(self.file), [10, 11, 12])
        for name in ("openTime", "Close Time", "open_time", "DATE", "Timestamp"):
            self.write(f"{name},open\n3,10\n1,11\n2,12\n")
            with contextlib.redirect_stderr(io.StringIO()):
                np.testing.assert_array_equal(load_prices(self.file), [11, 12, 10], name)

    def test_every_nth_row_counts_from_the_oldest(self):
        text = "\n".join(["time,open", *(f"{i},{i + 1}" for i in range(10))])
        self.assertEqual(self.load(text, "open", 4)[0], [1, 5, 9])


class Mistakes(InFolder):
    def test_a_file_that_cannot_be_used_is_told_in_one_line(self):
        good = "".join(f"{price}\n" for price in PRICES)
        dates = "".join(f"2020-{1 + i // 28:02}-{1 + i % 28:02},{PRICES[i]}\n" for i in range(100))
        for name, text, words in (
            ("empty", "", ["empty"]),
            ("blank", "\n\n", ["empty"]),
            ("only a header", "open\n", ["no rows"]),
            ("no such column", "Time,Close\n1,2\n", ["'open'", "'Time'", "'Close'"]),
            ("text", f"open\n1\n2\nthree\n{good}", ["line 4", "'three'"]),
            ("thousands", 'open,b\n"1,234.5",2\n', ["line 2", "'1,234.5'"]),
            ("underscores", f"open\n{good}1_000\n", ["line 302", "'1_000'"]),
            ("no number", f"open\n{good}nan\n", ["line 302", "'nan'"]),
            ("infinity", f"open\n1\ninf\n{good}", ["line 3", "'inf'"]),
            ("zero", f"# x\nopen\n1\n\n0\n{good}", ["line 5", "'0'"]),
            ("negative", f"open\n-1\n{good}", ["line 2", "'-1'"]),
            ("short row", "a,open\n1,2\n3\n", ["line 3"]),
            ("constant", "open\n" + "7\n" * 100, ["nothing to learn"]),
            ("few", "open\n1\n2\n3\n", ["3 prices", "at least"]),
            ("times repeat", f"date,open\n{dates}2020-01-05,7\n", ["line 102", "the time of line 6 again"]),
            (
                "times of no order",
                f"date,open\n{dates}13/12/2020,7\n",
                ["line 102", "'13/12/2020'", "sorted"],
            ),
            ("times of two kinds", f"date,open\n{dates}1600000000,7\n", ["date", "different kinds"]),
            ("a time that is none", "unix,open\n1600000000,1\nnan,7\n", ["line 3", "'nan'", "sorted"]),
            ("no time", f"date,open\n{dates},7\n", ["line 102", "sorted"]),
            ("one endless line", "1" * 200_000, ["line 1", "field limit"]),
            ("a quote that never ends", f'open,b\n1,"2\n{good * 50}', ["field limit"]),
            ("not text", bytes(range(256)) * 20, []),
        ):
            with self.subTest(name):
                result = main("train", self.write(text), "--checkpoint", self.checkpoint)
                self.assert_one_line(result, *words)
                self.assertFalse(self.checkpoint.exists())
        self.assert_one_line(main("train", self.folder / "none.csv"), "none.csv", "No such file")
        self.assert_one_line(main("train", self.folder), "directory")

    def test_a_damaged_file_is_read_or_refused_with_a_reason(self):
        dates = np.datetime64("2020-01-01") + np.arange(100)
        whole = "".join(
            ["date,open\n", *(f"{date},{price:.2f}\n" for date, price in zip(dates, PRICES))]
        ).encode()
        rng, outcomes = np.random.default_rng(0), {True: 0, False: 0}
        for _ in range(300):
            text = bytearray(whole)
            for _ in range(rng.integers(1, 3)):
                place = rng.integers(len(text))
                text[place : place + rng.integers(5)] = rng.choice(
                    [b"1", b"7", b",", b'"', b"\n", b"\0", b"-", b"\xff"]
                )
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    prices = load_prices(self.write(bytes(text)))
                self.assertTrue((np.isfinite(prices) & (prices > 0)).all())
            except ValueError as error:
                self.assertIn(str(self.file), str(error))
                self.assertNotIn("\n", str(error))
                prices = None
            outcomes[prices is None] += 1
        self.assertGreater(min(outcomes.values()), 30, outcomes)

    def test_a_damaged_checkpoint_is_refused_wherever_the_damage_is(self):
        write_csv(self.file, PRICES)
        self.assertEqual(main("train", self.file, "--checkpoint", self.checkpoint, *QUICK)[0], 0)
        whole, rng = self.checkpoint.read_bytes(), np.random.default_rng(0)
        for place in rng.integers(0, len(whole), 200):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << rng.integers(8)
            for data in (bytes(flipped), whole[:place]):
                self.checkpoint.write_bytes(data)
                with self.assertRaisesRegex(ValueError, "damaged, or not a checkpoint"):
                    stock_rnn.load_checkpoint(self.checkpoint)

    def test_a_flag_that_cannot_be_is_told_in_one_line(self):
        write_csv(self.file, PRICES)
        for flags, *words in (
            (["--seq-length", 0], "seq_length", "0"),
            (["--seq-length", 250], "300 prices", "at least 359"),
            (["--hidden-size", -1], "hidden_size", "-1"),
            (["--num-layers", 0], "num_layers"),
            (["--epochs", 0], "epochs"),
            (["--batch-size", 0], "batch_size"),
            (["--every", 0], "every"),
            (["--learning-rate", "nan"], "learning_rate", "nan"),
            (["--learning-rate", "fast"], "--learning-rate", "fast"),
            (["--weight-decay", -1], "weight_decay"),
            (["--val-fraction", 1], "val_fraction"),
            (["--normalise", "minmax"], "minmax"),
            (["--device", "tpu"], "tpu", "auto, cpu, cuda, mps"),
            (["--frobnicate"], "--frobnicate"),
            (["--seed", 1 << 70], "error"),
            (["--hidden-size", 1 << 30], "memory"),
            (["--log", self.folder], "folder"),
            (["--log", ""], "'' cannot be written", "names no file"),
            (["--log", f"{self.folder}/new/"], "names no file"),
            (["--plot", self.folder / "p.pdf"], "p.pdf", "PNG"),
            (["--plot", self.folder / "no" / "p.png"], "cannot be written"),
            (["--resume"], "No such file"),
        ):
            with self.subTest(flags):
                result = main("train", self.file, "--checkpoint", self.checkpoint, *flags)
                self.assert_one_line(result, *words)
                self.assertFalse(self.checkpoint.exists())

    def test_a_checkpoint_that_is_not_whole_or_not_ours_is_refused(self):
        write_csv(self.file, PRICES)
        self.assertEqual(main("train", self.file, "--checkpoint", self.checkpoint, *QUICK)[0], 0)
        whole = self.checkpoint.read_bytes()

        class Harm:
            def __reduce__(self):
                return Path.touch, (self.path,)

        Harm.path = self.folder / "harm"
        content = torch.load(io.BytesIO(whole), weights_only=True)

        def sealed(change):
            other, file = copy.deepcopy(content), io.BytesIO()
            change(other)
            torch.save(other, file)
            return file.getvalue() + hashlib.sha256(file.getvalue()).digest()

        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        evil = pickle.dumps(Harm())
        for name, data in (
            ("empty", b""),
            ("truncated", whole[:-100]),
            ("one bit", bytes(flipped)),
            ("text", self.file.read_bytes()),
            ("pickle", evil + hashlib.sha256(evil).digest()),
            ("code", sealed(lambda other: other.update(harm=Harm()))),
            ("a name too few", sealed(lambda other: other["state"]["model"].popitem())),
            ("a shape", sealed(lambda other: other["state"]["best"].update({"linear.bias": torch.zeros(2)}))),
            (
                "a type",
                sealed(lambda other: other["state"]["best"].update({"linear.bias": torch.zeros(1).double()})),
            ),
            ("a size", sealed(lambda other: other["about"]["settings"].update(hidden_size=5))),
            ("a setting", sealed(lambda other: other["about"]["settings"].update(every="1"))),
            ("a history", sealed(lambda other: other["state"]["history"]["train_loss"].pop())),
        ):
            for command in (("test", self.checkpoint, self.file), ("predict", self.checkpoint, self.file)):
                with self.subTest(name, command=command[0]):
                    self.checkpoint.write_bytes(data)
                    self.assert_one_line(main(*command), "checkpoint of stock_rnn.py")
            self.assert_one_line(
                main("train", self.file, "--checkpoint", self.checkpoint, "--resume"), "checkpoint"
            )
        self.assertFalse(Harm.path.exists())

    def test_prices_that_always_change_alike_are_refused(self):
        for prices in (100 * 1.01 ** np.arange(300), 2.0 ** np.arange(300), np.full(300, 7.0)):
            write_csv(self.file, prices)
            self.assert_one_line(
                main("train", self.file, "--checkpoint", self.checkpoint), "nothing to learn"
            )

    def test_no_file_is_read_and_written_or_written_twice(self):
        before = write_csv(self.file, PRICES).read_bytes()
        for flags in (
            ("--log", self.file),
            ("--checkpoint", self.file),
            ("--log", "a.pt", "--checkpoint", "./a.pt"),
        ):
            self.assert_one_line(main("train", self.file, *QUICK, *flags), "named twice")
        self.assertEqual(self.file.read_bytes(), before)

    @on_posix
    def test_a_pipe_is_read_to_its_last_row(self):
        write_csv(self.file, PRICES)
        process = start("/dev/stdin", "--checkpoint", self.checkpoint, *QUICK, stdin=subprocess.PIPE)
        out, err = process.communicate(self.file.read_text())
        self.assertEqual((process.returncode, err), (0, ""))
        self.assertIn("300 prices", out)

    def test_a_torch_older_than_2_6_is_refused(self):
        with mock.patch.object(torch, "__version__", "2.5.1+cpu"):
            self.assert_one_line(main("predict", "a.pt", "b.csv"), "2.5.1", "2.6")

    def test_a_loss_that_turns_nan_keeps_the_last_good_checkpoint(self):
        write_csv(self.file, PRICES)
        flags = ("train", self.file, "--checkpoint", self.checkpoint)
        self.assertEqual(main(*flags, *QUICK)[0], 0)
        before = self.checkpoint.read_bytes()
        self.assert_one_line(
            main(*flags, *QUICK, "--learning-rate", "1e30", "--epochs", "30"), "learning rate"
        )
        self.assertEqual(self.checkpoint.read_bytes(), before)


class CommandLine(InFolder):
    def test_train_then_test_then_predict(self):
        write_csv(self.file, PRICES)
        log, png = self.folder / "log.csv", self.folder / "p.png"
        flags = ("--checkpoint", self.checkpoint, "--log", log)
        status, out, err = main("train", self.file, *flags, *QUICK)
        self.assertEqual((status, err), (0, ""))
        self.assertRegex(out, r"Theil's U +\d\.\d{4} +1\.0000\n")
        untrained = stock_rnn.evaluate(RNN(4), split(PRICES, 5)[1])[0]
        self.assertIn(
            f"before training it says that the next price is the last price: validation loss {untrained:.6f}",
            out,
        )
        self.assertRegex(out, "(does not beat the naive forecast|below that of saying)")
        rows = list(csv.reader(log.read_text().splitlines()))
        self.assertEqual((rows[0], len(rows)), (["epoch", "train_loss", "val_loss"], 3))
        status, again, err = main("test", self.checkpoint, self.file)
        self.assertEqual((status, err), (0, ""))
        line = next(line for line in out.splitlines() if "Theil" in line)
        self.assertIn(line, again)  # on the file of training, only the part that was held out is tested
        self.assertIn("test on 45 prices", again)

        other = write_csv(self.folder / "other.csv", PRICES[::-1], header="Close")
        self.assertIn("test on 295 prices", main("test", self.checkpoint, other, "--column", "close")[1])
        status, out, err = main("predict", self.checkpoint, self.file, "--steps", "5")
        self.assertEqual((status, err), (0, ""))
        model, _, about = stock_rnn.load_checkpoint(self.checkpoint)
        expected = forecast(model, PRICES, 5, 5, "window", about["scale"])
        np.testing.assert_allclose(
            [float(line.replace(",", "")) for line in out.split("\n")[2:-1]], expected, rtol=1e-6
        )
        self.assert_one_line(main("predict", self.checkpoint, self.file, "--steps", "0"), "steps")
        self.assert_one_line(main("predict", self.checkpoint, write_csv(self.file, [1, 2])), "2 prices", "5")
        self.assert_one_line(main("test", self.checkpoint, write_csv(self.file, [7] * 30)), "never move")
        self.assertFalse(png.exists())

    def test_prices_are_called_unseen_only_when_they_are(self):
        write_csv(self.file, PRICES)
        out = main("train", self.file, "--checkpoint", self.checkpoint, *QUICK)[1]
        self.assertIn("test on 45 prices never seen", out)
        self.assertIn("test on 45 prices never seen", main("test", self.checkpoint, self.file)[1])
        write_csv(self.file, PRICES[:100])  # all of them from the training part
        self.assertIn("test on 95 prices  ", main("test", self.checkpoint, self.file)[1])

    def test_a_fresh_run_keeps_the_checkpoint_before_it(self):
        write_csv(self.file, PRICES)
        flags = ("train", self.file, "--checkpoint", self.checkpoint, *QUICK)
        main(*flags)
        before = self.checkpoint.read_bytes()
        main(*flags, "--seed", "1")
        self.assertEqual(Path(f"{self.checkpoint}.old").read_bytes(), before)

    def test_resume_refuses_other_settings_and_other_prices(self):
        write_csv(self.file, PRICES)
        flags = ("train", self.file, "--checkpoint", self.checkpoint)
        main(*flags, *QUICK)
        self.assert_one_line(main(*flags, "--resume", "--hidden-size", "8"), "hidden_size 4, not 8")
        write_csv(self.file, PRICES * 2)
        self.assert_one_line(main(*flags, "--resume"), "other prices")

    def test_the_plot_is_a_png_with_all_curves_in_it(self):
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            self.skipTest("matplotlib is not installed")
        from matplotlib.figure import Figure

        write_csv(self.file, PRICES)
        figures, savefig = [], Figure.savefig

        def keep(figure, *args, **options):
            figures.append(figure)
            savefig(figure, *args, **options)

        png = self.folder / "p.png"
        with mock.patch.object(Figure, "savefig", keep):
            self.assertEqual(
                main("train", self.file, "--checkpoint", self.checkpoint, "--plot", png, *QUICK)[0], 0
            )
        self.assertEqual(png.read_bytes()[:8], b"\x89PNG\r\n\x1a\n")
        prices, losses = figures[0].axes
        curves = {line.get_label(): line.get_ydata() for axes in (prices, losses) for line in axes.lines}
        self.assertEqual(
            list(curves), ["true", "predicted", "naive: the last price", "training", "validation"]
        )
        np.testing.assert_array_equal(curves["true"], PRICES[-45:])
        np.testing.assert_array_equal(curves["naive: the last price"], PRICES[-46:-1])
        self.assertEqual([len(curve) for curve in curves.values()], [45, 45, 45, 2, 2])

    def test_a_plot_without_matplotlib_is_refused_before_training(self):
        with mock.patch.dict(sys.modules, {"matplotlib": None}):
            self.assert_one_line(
                main("train", "--checkpoint", self.checkpoint, "--plot", "p.png"), "pip install"
            )


class Processes(InFolder):
    """With real processes, on the data that comes with the script."""

    def wait_for(self, path, process):
        while not path.exists() and process.poll() is None:
            time.sleep(0.01)
        self.assertTrue(path.exists(), process.returncode)

    def history(self, log):
        return list(csv.reader(log.read_text().splitlines()))

    @on_posix
    def test_a_killed_run_resumes_to_the_same_history_to_the_last_bit(self):
        log, whole = self.folder / "log.csv", self.folder / "whole.csv"
        first = start("--checkpoint", self.checkpoint, "--log", log, "--epochs", "100000")
        self.wait_for(log, first)
        first.kill()
        first.communicate()
        self.assertEqual(first.returncode, -signal.SIGKILL)
        _, state, _ = stock_rnn.load_checkpoint(self.checkpoint)
        epochs = len(state["history"]["val_loss"]) + 3
        out, err = start(
            "--checkpoint", self.checkpoint, "--log", log, "--resume", "--epochs", epochs
        ).communicate()
        self.assertEqual(err, "")
        self.assertIn("going on", out)
        other = self.folder / "other.pt"
        self.assertEqual(
            start("--checkpoint", other, "--log", whole, "--epochs", epochs).communicate()[1], ""
        )
        self.assertEqual(len(self.history(log)), epochs + 1)
        self.assertEqual(self.history(log), self.history(whole))

        states = [stock_rnn.load_checkpoint(path)[1] for path in (self.checkpoint, other)]
        for name in ("model", "best"):
            for one, two in zip(*(state[name].values() for state in states)):
                self.assertTrue(torch.equal(one, two), name)

    @on_posix
    def test_ctrl_c_and_sigterm_save_and_say_so_in_the_exit_status(self):
        for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            checkpoint = self.folder / f"{status}.pt"
            process = start("--checkpoint", checkpoint, "--epochs", "100000")
            self.wait_for(checkpoint, process)
            process.send_signal(number)
            out, err = process.communicate()
            self.assertEqual((process.returncode, err), (status, ""))
            _, state, _ = stock_rnn.load_checkpoint(checkpoint)
            self.assertIn(f"stopped after epoch {len(state['history']['val_loss'])}; to go on", out)

    def test_two_runs_on_one_checkpoint_leave_a_whole_one(self):
        runs = [start("--checkpoint", self.checkpoint, "--seed", seed, "--epochs", "20") for seed in (0, 1)]
        self.wait_for(self.checkpoint, runs[0])
        for _ in range(20):
            stock_rnn.load_checkpoint(self.checkpoint)
        for process in runs:
            self.assertEqual((process.communicate()[1], process.returncode), ("", 0))
        _, state, about = stock_rnn.load_checkpoint(self.checkpoint)
        main("--checkpoint", self.folder / "alone.pt", "--seed", about["settings"]["seed"], "--epochs", "20")
        self.assertEqual(stock_rnn.load_checkpoint(self.folder / "alone.pt")[1]["history"], state["history"])

    @on_posix
    def test_a_read_only_folder_costs_no_checkpoint(self):
        write_csv(self.file, PRICES)
        closed = self.folder / "closed"
        closed.mkdir()
        checkpoint = closed / "model.pt"
        self.assertEqual(main("train", self.file, "--checkpoint", checkpoint, *QUICK)[0], 0)
        before = checkpoint.read_bytes()
        self.folder.chmod(0o755)
        closed.chmod(0o555)
        self.addCleanup(closed.chmod, 0o755)
        as_user = (  # root may write anywhere, so it becomes a user once a first command has imported all
            "import os, sys, stock_rnn; args = sys.argv[1:]; stock_rnn.main(['predict', args[-1], args[1]]); "
            "os.geteuid() or os.setuid(65534); os._exit(stock_rnn.main(args))"
        )
        command = [
            sys.executable,
            "-c",
            as_user,
            "train",
            self.file,
            "--resume",
            "--epochs",
            "5",
            "--checkpoint",
        ]
        environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
        done = subprocess.run([*command, checkpoint], capture_output=True, text=True, env=environment)
        self.assert_one_line((done.returncode, done.stdout, done.stderr), "folder is missing or read-only")
        self.assertEqual(checkpoint.read_bytes(), before)
        self.assertEqual(os.listdir(closed), ["model.pt"])

    @on_posix
    def test_a_full_disk_costs_neither_the_previous_checkpoint_nor_a_traceback(self):
        write_csv(self.file, PRICES)
        main("train", self.file, "--checkpoint", self.checkpoint, *QUICK)
        before = self.checkpoint.read_bytes()

        def no_room():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) - 1, len(before) - 1))

        process = start(
            "train", self.file, "--checkpoint", self.checkpoint, *QUICK, "--resume", preexec_fn=no_room
        )
        self.assertEqual(process.communicate()[1], "")  # nothing left to do, nothing to write
        process = start(
            "train", self.file, "--checkpoint", self.checkpoint, "--resume", "--epochs", 9, preexec_fn=no_room
        )
        out, err = process.communicate()
        self.assert_one_line(
            (process.returncode, out, err), "cannot be written", "what was there is untouched"
        )
        self.assertEqual(self.checkpoint.read_bytes(), before)
        self.assertEqual(sorted(path.name for path in self.folder.iterdir()), ["model.pt", "prices.csv"])

    def test_a_mistake_is_one_line_in_a_real_process_too(self):
        process = start("train", self.folder / "none.csv")
        out, err = process.communicate()
        self.assert_one_line((process.returncode, out, err), "none.csv")


@unittest.skipUnless((SCRIPT.parent / "README.md").exists(), "README.md is not beside the tests")
class Readme(InFolder):
    def test_python_snippets_about_stock_rnn_run_as_written(self):
        text = (SCRIPT.parent / "README.md").read_text(encoding="utf-8")
        snippets = [
            code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "stock_rnn" in code
        ]
        self.assertGreater(len(snippets), 0)
        (self.folder / "data").symlink_to(SCRIPT.parent / "data")
        (self.folder / "stock_rnn.py").write_bytes(SCRIPT.read_bytes())
        for snippet in snippets:
            done = subprocess.run(
                [sys.executable, "-c", snippet], cwd=self.folder, capture_output=True, text=True
            )
            self.assertEqual((done.returncode, done.stderr), (0, ""), snippet)


if __name__ == "__main__":
    unittest.main()

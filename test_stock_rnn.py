# SPDX-License-Identifier: MIT-0
"""What stock_rnn.py promises, each test one claim:  python -m unittest test_stock_rnn"""

import contextlib
import copy
import io
import math
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
import unittest
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as the script does, which comes after NumPy here

import numpy as np

if find_spec("torch"):
    import torch
    from torch.utils.data import DataLoader, Subset, TensorDataset, random_split

    import stock_rnn
    from stock_rnn import (
        RNN,
        StockDataset,
        UserError,
        diebold_mariano,
        errors_by_step,
        errors_of,
        evaluate,
        forecast,
        intervals,
        load_checkpoint,
        load_prices,
        score,
        shares_inside,
        split,
    )

    MSE = torch.nn.MSELoss()

HERE = Path(__file__).resolve().parent
SCRIPT = str(HERE / "stock_rnn.py")
BITCOIN = str(HERE / "data" / "btcusd_20h.csv")
CO2 = str(HERE / "data" / "co2_monthly.csv")
SMALL = ["--hidden-size=4", "--seq-length=5", "--epochs=3"]  # a model that trains in a blink


def walk(seed=1, steps=200):
    """A random walk, which nobody can predict."""
    return 1000 * np.cumprod(1 + 0.01 * np.random.default_rng(seed).normal(size=steps))


def season(steps=300):
    """A yearly swing with noise, below zero as well."""
    noise = np.random.default_rng(3).normal(size=steps)
    return 8 * np.sin(2 * np.pi * np.arange(steps) / 12) + noise


def learn(parts=None, seed=0, model=None, rate=0.01, **options):
    """The parts, a small model trained on the first two, and its history."""
    parts = parts or split(walk(), 5)
    torch.manual_seed(seed)
    model = model or RNN(4)
    loaders = DataLoader(parts[0], 32, shuffle=True), DataLoader(parts[1], 1024)
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    history = stock_rnn.train(model, *loaders, MSE, optimizer, **{"epochs": 5} | options)
    return parts, model, history


def random_model():
    """An untrained model that is not the naive forecast."""
    torch.manual_seed(4)
    model = RNN(4)
    torch.nn.init.normal_(model.linear.weight)
    return model


def plain(value):
    """What torch.load gives, as lists and numbers that == compares."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return (value.dtype, value.tolist()) if isinstance(value, torch.Tensor) else value


def load_quietly(path, *args):
    """The values of a file, without a word about their order."""
    with contextlib.redirect_stderr(io.StringIO()):
        return load_prices(path, *args)


@unittest.skipUnless(find_spec("torch"), "torch is not installed")
class InFolder(unittest.TestCase):
    """A folder for each test, and the command line in this process (main) or its own (start)."""

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
        self.csv("values.csv", walk(steps=120))
        self.flags = ["train", "values.csv", *SMALL]

    def write(self, name, content):
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    def csv(self, name, values):
        return self.write(name, "open\n" + "".join(f"{value}\n" for value in values))

    def files(self):
        return {str(path): path.read_bytes() for path in Path().iterdir() if path.is_file()}

    def main(self, *args):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = stock_rnn.main(args) or 0
            except SystemExit as end:
                status = end.code
        return status, out.getvalue(), err.getvalue()

    def start(self, *args, row=None, script=SCRIPT, **options):
        """A real process under way that has printed a row, if one is named by its first word."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
        process = subprocess.Popen([sys.executable, script, *args], **pipes, **options)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        if row:
            next(line for line in process.stdout if line.split()[:1] == [row])
        return process

    def succeed(self, *args):
        status, out, err = self.main(*args)
        self.assertEqual(status, 0, err)
        return out

    def train(self, *args):
        return self.succeed(*self.flags, *args)

    def contents(self, path):
        saved = plain(torch.load(path, weights_only=True))  # nothing in it is run
        del saved["settings"]["prices"], saved["settings"]["checkpoint"]  # names of files
        return saved

    def refuse(self, saying, *args):
        """The command ends with status 2 and a last line that says why, and changes no file."""
        before = self.files()
        status, out, err = self.main(*args)
        self.assertEqual((status, out, self.files()), (2, "", before), (args, err))
        *_, last = err.splitlines()
        self.assertRegex(last, r"\Astock_rnn.py( \w+)?: error: ", args)
        self.assertIn(saying, last, args)
        self.assertNotIn("Traceback", err)


class TestData(InFolder):
    def test_items_are_the_values_from_the_index_on_by_the_formulas(self):
        values = walk()
        for normalise in stock_rnn.NORMALISE:
            data = StockDataset(values, 5, normalise)
            items = [data[i] for i in range(195)]
            self.assertEqual(len(data), 195)
            for i, (x, target) in enumerate(items):
                centre = unit = values[i + 4]
                if normalise == "relative":
                    unit = np.std(np.diff(values) / values[:-1]) * centre
                elif normalise == "difference":
                    unit = np.std(np.diff(values))
                else:
                    centre = (values.max() + values.min()) / 2
                    unit = (values.max() - values.min()) / 2
                self.assertEqual((x.shape, target.shape, x.dtype), ((5, 1), (1,), torch.float32))
                expected = (values[i : i + 6] - centre) / unit
                np.testing.assert_allclose([*x[:, 0], *target], expected, atol=1e-6)
            for index in ([3, 1, 190], slice(2, 9), torch.tensor([0, 4]), slice(None)):
                for part, single in zip(data[index], zip(*items)):
                    self.assertTrue(torch.equal(part, torch.stack(single)[index]))

    def test_every_value_after_the_first_window_is_a_target_once_or_the_split_is_refused(self):
        wrong = [(50, 0.1, 0.3), (20, 0, 0.3), (20, 0.1, 0), (20, 0.5, 0.5), (20, -0.1, 0.3)]
        wrong += [(20, 0.1, 1.5), (20, 3, 0.3), (20, 0.1, -0.3), (20, math.nan, 0.3)]
        for size in range(70, 99, 7):
            values = np.arange(1.0, size + 1) ** 2
            parts = split(values, 20, 0.1, 0.3)
            self.assertEqual([len(part) for part in parts[1:]], [int(size * 0.1), int(size * 0.3)])
            targets = np.concatenate([part.values[20:] for part in parts])
            self.assertEqual(targets.tolist(), values[20:].tolist())
            scale = StockDataset(parts[0].values, 20).scale
            self.assertEqual([part.scale for part in parts], [scale] * 3)
            for sizes in wrong:
                with self.assertRaises(UserError):
                    split(values, *sizes)
        self.assertEqual([len(part) for part in split(walk(), 20)], [120, 30, 30])  # 15 % each

    def test_to_train_on_are_more_values_than_two_windows_have(self):
        values = np.arange(1.0, 44) ** 2
        self.assertEqual(len(split(values, 20, 0.03, 0.03)[0]), 21)
        with self.assertRaisesRegex(UserError, "of 42 values 40 would be there to train on, 1 to "):
            split(values[:42], 20, 0.03, 0.03)

    def test_the_middle_of_the_range_is_that_of_the_training_part(self):
        train_set, _, test_set = split(walk(), 5, normalise="range")
        self.assertEqual(test_set.middle, train_set.middle)
        self.assertNotEqual(test_set.middle, StockDataset(test_set.values, 5, "range").middle)

    def test_values_of_any_sign_choose_the_difference_by_the_training_part_alone(self):
        values = walk()
        self.assertEqual(split(values, 5)[0].normalise, "relative")
        self.assertEqual(split(values - 2000, 5)[0].normalise, "difference")
        values[-1] = -3
        with self.assertRaisesRegex(UserError, "-3 is not above zero: train with --normalise diff"):
            split(values, 5)
        self.assertEqual(split(values, 5, normalise="difference")[2].values[-1], -3)

    def test_no_leak_of_test_values_into_training_nor_of_validation_values_into_its_history(self):
        known = walk()
        other_test = np.append(known[:170], walk(2)[:30])
        other_val = np.concatenate([known[:140], walk(2)[:30], known[170:]])
        for normalise in stock_rnn.NORMALISE:
            runs = []
            for values in (known, other_test, other_val):
                _, model, history = learn(split(values, 5, normalise=normalise))
                runs.append((history, plain(model.state_dict())))
            self.assertEqual(runs[0], runs[1])
            self.assertEqual(runs[0][0]["train_loss"], runs[2][0]["train_loss"])
            self.assertNotEqual(runs[0][0]["val_loss"], runs[2][0]["val_loss"])

    def test_sizes_and_values_that_cannot_be_are_refused(self):
        good = [1, 2, 4, 3]
        for args in (
            *(([1, bad, 3], 1, way) for bad in (math.nan, math.inf) for way in stock_rnn.NORMALISE),
            *(([5] * 4, 1, way) for way in stock_rnn.NORMALISE),
            *((values, 1) for values in ([1, 2, 4, 8], [1, 0, 3], [1, -3, 4], [], [1, 1e300, 2])),
            *((good, size) for size in (4, 5)),
            (good, 2, "minmax"),
            ([1e13, 1e13 + 1, 1e13 + 3], 1, "difference"),  # a change that its values hardly show
        ):
            with self.subTest(args), self.assertRaises(UserError):
                StockDataset(*args)
        with self.assertRaisesRegex(UserError, r"one series \(N,\), not an array \(4, 1\)"):
            StockDataset(np.ones((4, 1)), 2)
        self.assertEqual(len(StockDataset(good, 3)), 1)
        self.assertEqual(len(StockDataset(good, 4, scale=1.0)), 0)  # a window to forecast from


class TestModel(InFolder):
    def test_forward_is_the_recurrence_written_out(self):
        model = random_model().double()
        x = torch.randn(4, 6, 1).double()
        w = {name: value.detach().numpy() for name, value in model.named_parameters()}
        ba = w["rnn.bias_ih_l0"] + w["rnn.bias_hh_l0"]
        for window, output in zip(x.numpy(), model(x)):
            a = np.zeros(4)
            for x_t in window:
                a = np.tanh(w["rnn.weight_hh_l0"] @ a + w["rnn.weight_ih_l0"] @ x_t + ba)
            y = w["linear.weight"] @ a + w["linear.bias"]
            np.testing.assert_allclose(output.detach(), y, atol=1e-12)

    def test_an_untrained_model_is_the_naive_forecast(self):
        for values, normalise in ((walk(), "relative"), (season(), "difference")):
            data = StockDataset(values, 5, normalise)
            for cell in stock_rnn.CELLS:
                figures = stock_rnn.test(RNN(8, cell), data)
                self.assertEqual((figures["theil_u"], figures["t"]), (1, 0))
                self.assertTrue(math.isnan(figures["direction"]))  # it sees no move

    def test_what_can_be_learned_is_learned_by_every_cell(self):
        parts = split(50 + np.sin(np.arange(400) / 4), 10)
        for cell in stock_rnn.CELLS:
            _, model, _ = learn(parts, model=RNN(8, cell), epochs=40)
            self.assertLess(stock_rnn.test(model, parts[2])["theil_u"], 0.1, cell)
        kinds = zip(stock_rnn.CELLS, (torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM))
        self.assertTrue(all(type(RNN(8, cell).rnn) is kind for cell, kind in kinds))
        self.assertIsInstance(RNN().rnn, torch.nn.RNN)
        self.assertEqual(RNN().rnn.hidden_size, 32)

    def test_the_errors_are_of_the_model_the_last_value_its_drift_and_least_squares(self):
        for normalise in stock_rnn.NORMALISE:
            train_set = StockDataset(walk(), 5, normalise)
            test_set = train_set.with_values(walk(2))
            model = random_model()
            errors = errors_of(model, test_set, train_set)
            self.assertEqual([*errors], ["model", "naive", "drift", "linear"])
            last, true = test_set.values[4:-1], test_set.values[5:]
            centre, unit = test_set.centre_and_unit(last)
            x, target = (part.double().numpy() for part in test_set[:])
            output = model(test_set[:][0]).detach().numpy()[:, 0]
            np.testing.assert_allclose(errors["model"], true - centre - unit * output, rtol=1e-4)
            np.testing.assert_array_equal(errors["naive"], true - last)
            known, next_one = (part.double().numpy() for part in train_set[:])
            drift = np.mean(next_one - known[:, -1])
            np.testing.assert_allclose(errors["drift"], true - last - unit * drift, rtol=1e-4)
            inputs = np.column_stack([known[..., 0], np.ones(len(known))])
            weights = np.linalg.pinv(inputs) @ next_one[:, 0]
            output = np.column_stack([x[..., 0], np.ones(len(x))]) @ weights
            np.testing.assert_allclose(errors["linear"], true - centre - unit * output, rtol=1e-4)

    def test_figures_are_those_of_their_definitions(self):
        data = StockDataset(walk().round(-1), 5)
        ((error, naive, _),) = errors_by_step(random_model(), data)
        true, last = data.values[5:], data.values[4:-1]
        moved = true != last
        self.assertTrue(0 < moved.sum() < len(moved))
        d = naive**2 - error**2
        expected = {
            "rmse": np.mean(error**2) ** 0.5,
            "theil_u": (np.sum(error**2) / np.sum(naive**2)) ** 0.5,
            "direction": np.mean(((true - error > last) == (true > last))[moved]),
            "t": d.mean() / (d.std(ddof=1) / 195**0.5),
        }
        figures = stock_rnn.test(random_model(), data)
        self.assertEqual(figures.keys(), expected.keys())
        for name, value in expected.items():
            self.assertAlmostEqual(figures[name] / value, 1, places=9, msg=name)
        self.assertEqual(diebold_mariano(naive, error), -figures["t"])
        self.assertEqual(diebold_mariano(naive, naive), 0)

    def test_a_test_where_no_value_moves_or_none_is_left_is_refused(self):
        self.csv("flat.csv", [*walk(steps=90), *[7] * 30])
        self.refuse("no value to test on", "flat.csv", *SMALL)  # before the training
        data = StockDataset(walk(), 5)
        for values in ([7.0] * 20, [1e-200, 2e-200] * 5, walk()[:5]):
            with self.assertRaisesRegex(UserError, "no value to test on"):
                stock_rnn.test(RNN(4), data.with_values(values))

    def test_several_steps_are_scored_each_beside_the_last_value_of_the_window(self):
        for normalise in stock_rnn.NORMALISE:
            data = StockDataset(walk(), 5, normalise)
            model = random_model()
            found = forecast(model, data, 3)
            expected = []
            for step in (1, 2, 3):
                places = range(5 + step - 1, 200)  # of the values that are so many steps ahead
                error = [data.values[i] - found[i - step - 4, step - 1] for i in places]
                naive = [data.values[i] - data.values[i - step] for i in places]
                expected.append(stock_rnn.rms(np.array(error)) / stock_rnn.rms(np.array(naive)))
            figures = stock_rnn.test(model, data, steps=3)
            np.testing.assert_allclose(figures["theil_u"], expected, rtol=1e-9)
            one = stock_rnn.test(model, data)
            self.assertIsInstance(one["theil_u"], float)
            self.assertEqual(figures["t"], one["t"])
            self.assertEqual([figures[name][0] for name in one if name != "t"], [*one.values()][:3])

    def test_intervals_are_quantiles_of_the_errors_of_each_step_in_units_of_their_windows(self):
        for normalise in stock_rnn.NORMALISE:
            data = StockDataset(walk(), 5, normalise)
            model = random_model()
            found = intervals(model, data, 3)
            forecasts = forecast(model, data, 3)
            for step in (1, 2, 3):
                scaled = []
                for i in range(200 - 5 - step + 1):
                    _, unit = data.centre_and_unit(data.values[i + 4])
                    error = data.values[i + 5 + step - 1] - forecasts[i, step - 1]
                    scaled.append(error / unit)
                np.testing.assert_allclose(found[step - 1], np.quantile(scaled, [0.1, 0.9]))
            np.testing.assert_array_equal(intervals(model, data), found[:1])
            self.assertAlmostEqual(shares_inside(model, data, found)[2], 0.8, delta=0.01)

    def test_more_steps_than_values_are_refused_before_anything_is_printed(self):
        self.train()
        self.csv("few.csv", walk(9)[:20])
        told = (
            "no value to test on, or none that differs from the last one of its window: take more"
        )
        self.refuse(told, "test", "stock_rnn.pt", "few.csv", "--steps=16")
        self.assertIn(" 15\n", self.succeed("test", "stock_rnn.pt", "few.csv", "--steps=15"))
        out = self.succeed("predict", "stock_rnn.pt", "few.csv", "--steps=40")
        self.assertEqual(out.splitlines()[-1].split()[1:], ["-", "-"])

    def test_an_interval_needs_30_errors_of_its_step(self):
        data = StockDataset(walk(), 5)
        few = data.with_values(walk()[:36])  # 31 windows, with a value 2 steps ahead 30
        found = intervals(RNN(4), few, 40)
        self.assertEqual(np.isnan(found[:, 0]).tolist(), [False, False, *[True] * 38])
        shares = shares_inside(RNN(4), data, found)
        self.assertEqual(np.isnan(shares).tolist(), [False, False, *[True] * 38])

    def test_the_share_inside_counts_the_values_between_low_and_high(self):
        data = StockDataset(walk(), 5)
        ((error, _, unit),) = errors_by_step(RNN(4), data)
        low, high = np.quantile(error / unit, [0.3, 0.4])
        share = np.mean([low <= e <= high for e in error / unit])
        self.assertTrue(0.05 < share < 0.15)
        self.assertEqual(shares_inside(RNN(4), data, np.array([[low, high]]))[0], share)
        self.assertEqual(shares_inside(RNN(4), data, np.array([[-99.0, 99.0]]))[0], 1)

    def test_of_independent_errors_the_intervals_hold_80_percent(self):
        noise = np.random.default_rng(0).normal(size=6000)
        train_set = StockDataset(noise[:2000], 5, "difference")
        val_set, test_set = (train_set.with_values(noise[i : i + 2005]) for i in (2000, 3990))
        model = RNN(4)  # untrained: the error is the change
        for share in shares_inside(model, test_set, intervals(model, val_set, 3)):
            self.assertAlmostEqual(share, 0.8, delta=0.03)

    def test_a_forecast_feeds_each_prediction_back_after_every_window(self):
        for normalise in stock_rnn.NORMALISE:
            data = StockDataset(walk(), 5, normalise)
            model = random_model()
            found = forecast(model, data, 3)
            self.assertEqual(found.shape, (196, 3))
            self.assertEqual(forecast(model, data).shape, (196, 1))
            for end in (5, 77, 200):
                values = data.values[:end].tolist()
                for _ in range(3):
                    values.append(forecast(model, data.with_values(values[-5:]))[0, 0])
                np.testing.assert_allclose(found[end - 5], values[-3:], rtol=1e-6)

    def test_more_windows_than_a_piece_of_a_forecast_are_forecast_alike(self):
        data = StockDataset(walk(steps=3000), 5)
        model = random_model()
        alone = forecast(model, data.with_values(data.values[2000:2005]))
        np.testing.assert_allclose(forecast(model, data)[2000], alone[0], rtol=1e-6)


class TestTraining(InFolder):
    def test_train_takes_a_loader_over_any_dataset_of_pairs(self):
        train_set, val_set, _ = split(walk(), 5)
        subsets = Subset(train_set, range(50)), random_split(train_set, [0.5, 0.5])[0]
        histories = []
        for data in (train_set, TensorDataset(*train_set[:]), *subsets):
            torch.manual_seed(0)
            loaders = DataLoader(data, 16, shuffle=True), DataLoader(val_set, 7)
            model = RNN(4)
            optimizer = torch.optim.AdamW(model.parameters())
            histories.append(stock_rnn.train(model, *loaders, MSE, optimizer, epochs=2))
        self.assertEqual(histories[0], histories[1])
        self.assertNotEqual(histories[1], histories[2])

    def test_a_plain_loader_gets_whole_batches_that_are_the_items_one_by_one(self):
        data = StockDataset(walk(), 5)
        batches = [*DataLoader(data, 64)]
        self.assertEqual([len(x) for x, _ in batches], [64, 64, 64, 3])
        items = [data[i] for i in range(len(data))]
        for part in (0, 1):
            joined = torch.cat([batch[part] for batch in batches])
            self.assertTrue(torch.equal(joined, torch.stack([item[part] for item in items])))
        whole = StockDataset.__getitems__
        with mock.patch.object(
            StockDataset, "__getitems__", autospec=True, side_effect=whole
        ) as spy:
            orders = []
            for seed in (1, 1, 2):
                torch.manual_seed(seed)
                shuffled = DataLoader(data, 64, shuffle=True)
                orders.append(torch.cat([target for _, target in shuffled]))
        self.assertEqual(spy.call_count, 12)
        self.assertTrue(torch.equal(orders[0], orders[1]))
        self.assertFalse(torch.equal(orders[0], orders[2]))
        self.assertTrue(torch.equal(orders[0].sort(0)[0], data[:][1].sort(0)[0]))

    def test_losses_are_means_over_windows_by_the_criterion_that_is_given(self):
        train_set, val_set, _ = split(walk(), 5)
        model = random_model()
        for criterion, power in ((MSE, 2), (torch.nn.L1Loss(), 1)):
            optimizer = torch.optim.SGD(model.parameters(), 0.0)  # its weights stay
            states = []
            loaders = DataLoader(train_set, 100), DataLoader(val_set, 20)  # the last are smaller
            stock_rnn.train(model, *loaders, criterion, optimizer, epochs=1, report=states.append)
            history = states[0]["history"]
            for name, data in (("train_loss", train_set), ("val_loss", val_set)):
                x, target = data[:]
                mean = ((model(x) - target).abs() ** power).mean().item()
                self.assertAlmostEqual(history[name][0], mean, places=5)
            self.assertEqual(states[0]["best_loss"], history["val_loss"][0])
            self.assertEqual(states[0]["best_epoch"], 0)  # the first validation is by it as well

    def test_the_criterion_that_is_given_is_the_one_that_is_minimised(self):
        parts = split(walk(), 5)
        ends = []
        for criterion in (MSE, torch.nn.L1Loss(), lambda output, target: (output**2).mean()):
            torch.manual_seed(0)
            model = random_model()
            loaders = DataLoader(parts[0], 200), DataLoader(parts[1], 200)
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            stock_rnn.train(model, *loaders, criterion, optimizer, epochs=1)
            ends.append(plain(model.state_dict()))
        self.assertEqual(len({str(end) for end in ends}), 3)

    def test_an_optimiser_of_ones_own_keeps_its_rate(self):
        rates = []
        parts = split(walk(), 5)
        model = RNN(4)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        stock_rnn.train(
            model,
            *(DataLoader(part, 1024) for part in parts[:2]),
            MSE,
            optimizer,
            epochs=7,
            report=lambda state: rates.append(state["optimizer"]["param_groups"][0]["lr"]),
        )
        self.assertEqual([*rates, optimizer.param_groups[0]["lr"]], [0.1] * 8)

    def test_a_scheduler_of_torch_is_stepped_once_an_epoch_and_kept_in_the_state(self):
        parts = split(walk(), 5)
        loaders = DataLoader(parts[0], 32), DataLoader(parts[1], 1024)
        histories = []
        for stops in ((6,), (2, 6)):
            state = None
            for epochs in stops:
                torch.manual_seed(0)
                model = RNN(4)
                optimizer = torch.optim.SGD(model.parameters(), 0.8)
                scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
                states = []
                options = {"report": states.append, "state": state, "epochs": epochs}
                history = stock_rnn.train(model, *loaders, MSE, optimizer, scheduler, **options)
                state = states[-1]
            histories.append(history)
            self.assertEqual(state["scheduler"]["last_epoch"], 6)
            self.assertEqual(optimizer.param_groups[0]["lr"], 0.1)
        self.assertEqual(*histories)

    def rates_of(self, epochs, state):
        """The rates of the epochs of a run to so many, and the state that it ends with."""
        parts = split(walk(), 5)
        model = RNN(4)
        optimizer, scheduler = stock_rnn.adamw(model, epochs)
        rates = []
        states = []
        optimizer.register_step_pre_hook(
            lambda *args: rates.append(optimizer.param_groups[0]["lr"])
        )
        loaders = DataLoader(parts[0], 1024), DataLoader(parts[1], 1024)
        options = {"epochs": epochs, "report": states.append, "state": state}
        stock_rnn.train(model, *loaders, MSE, optimizer, scheduler, **options)
        return rates, states[-1]

    def test_the_rate_of_adamw_falls_by_half_a_cosine_and_by_a_new_plan_from_its_first_step(self):
        state = None
        for start, epochs in ((0, 4), (4, 6)):
            rates, state = self.rates_of(epochs, state)
            expected = 3e-3 * (1 + np.cos(np.pi * np.arange(start, epochs) / epochs)) / 2
            np.testing.assert_allclose(rates, expected, rtol=1e-12)
        self.assertEqual(state["optimizer"]["param_groups"][0]["weight_decay"], 0.1)
        self.assertIn("exp_avg_sq", state["optimizer"]["state"][0])
        self.assertEqual(stock_rnn.adamw(RNN(4), 9, 0.5)[0].param_groups[0]["initial_lr"], 0.5)
        for rate in (0, -1, math.nan, math.inf):
            with self.assertRaisesRegex(UserError, "learning_rate must be a positive number"):
                stock_rnn.adamw(RNN(4), 9, rate)

    def test_a_network_of_ones_own_has_its_dropout_on_in_training_alone(self):
        model = Own(1, 1, batch_first=True)
        parts, _, _ = learn(model=model)
        self.assertEqual(model.modes, [False] + ([True] * 5 + [False]) * 5)
        for use in (
            lambda: stock_rnn.test(model, parts[2]),
            lambda: evaluate(model, DataLoader(parts[2], 9), MSE),
        ):
            model.train()
            self.assertEqual(use(), use())

    def test_a_model_that_answers_a_tuple_or_no_column_is_refused_in_words(self):
        with self.assertRaisesRegex(UserError, "the model answers tuple, and must answer a tensor"):
            learn(model=torch.nn.LSTM(1, 1, batch_first=True))
        with self.assertRaisesRegex(UserError, r"answers .*\[30\].*must answer .*\[30, 1\]"):
            learn(model=torch.nn.Sequential(RNN(4), torch.nn.Flatten(0)))

    def test_the_model_ends_with_its_best_weights_which_may_be_those_it_came_with(self):
        states = []
        parts, model, history = learn(epochs=20, report=states.append)
        val_loader = DataLoader(parts[1], 1024)
        untrained = evaluate(RNN(4), val_loader, MSE)
        losses = [untrained, *history["val_loss"]]
        self.assertEqual(evaluate(model, val_loader, MSE), min(losses))
        self.assertLess(min(losses), losses[-1])
        self.assertEqual(states[-1]["best_epoch"], np.argmin(losses))
        self.assertTrue(0 < np.argmin(losses) < 20)
        _, model, history = learn(rate=10.0)
        self.assertLess(untrained, min(history["val_loss"]))
        self.assertEqual(evaluate(model, val_loader, MSE), untrained)
        with self.assertRaisesRegex(UserError, "no finite loss in epoch 1: try a lower learning"):
            learn(rate=1e30)

    def test_a_seed_or_a_state_repeats_a_run_exactly_whatever_the_report_draws(self):
        states = []
        runs = [learn(report=lambda state: states.append(state) or torch.rand(3))]
        runs += [learn(), learn(seed=1)]
        kept = copy.deepcopy(plain(states[1]))
        runs += [learn(seed=seed, state=states[1]) for seed in (5, 6)]
        self.assertEqual(plain(states[1]), kept)
        results = [(history, plain(model.state_dict())) for _, model, history in runs]
        self.assertEqual([results[1], *results[3:]], [results[0]] * 3)
        self.assertNotEqual(results[2][0], results[0][0])

    def test_a_resumed_run_has_the_same_bits_with_dropout_and_default_loaders_with_workers(self):
        train_set, val_set, _ = split(walk(), 5)
        states = []
        results = []
        for seed in (0, 7):
            torch.manual_seed(seed)
            model = Own(1, 1, batch_first=True)
            loaders = DataLoader(train_set, 32, shuffle=True, num_workers=1), DataLoader(val_set)
            state = states[0] if states else None
            optimizer = torch.optim.AdamW(model.parameters())
            options = {"epochs": 3, "report": states.append, "state": state}
            history = stock_rnn.train(model, *loaders, MSE, optimizer, **options)
            results.append((history, plain(model.state_dict())))
        self.assertEqual(*results)


class TestVerdict(InFolder):
    def say(self, model, naive, drift, linear):
        """The verdict on errors of so many normal deviates, each multiplied by a number."""
        errors = {"model": model, "naive": naive, "drift": drift, "linear": linear}
        return stock_rnn.verdict(errors)

    def test_each_sentence_stands_for_its_case(self):
        e, other, third = self.rng.normal(size=(3, 400))
        other *= stock_rnn.rms(e) / stock_rnn.rms(other)
        large = 2 * e
        noisy = 1.2 * third * stock_rnn.rms(e) / stock_rnn.rms(third)
        for sentence, errors in (
            ("Too few values to tell: 29, and 30 are needed.", (e[:29], *[large[:29]] * 3)),
            ("Better than all three", (e[:30], *[large[:30]] * 3)),
            ("Worse than the last value: its error is 7.0% larger.", (1.07 * e, e, large, large)),
            (
                "Better than all three simple forecasts: its error is 20.0% smaller than that of "
                "the straight line.",
                (e, large, 1.5 * e, 1.25 * e),
            ),
            (
                "Better than the last value (50.0% smaller), but not shown to be better than "
                "the straight line.",
                (e, large, large, other),
            ),
            (
                "Better than the last value (50.0% smaller), but worse than the straight line.",
                (e, large, large, e / 2),
            ),
            (
                "Better than the last value (50.0% smaller), but not shown to be better than "
                "drift.",
                (e, large, 1.0004 * e, large),  # sure, and far too small a gain
            ),
            (
                "No evidence that it is better than the last value: the diff",
                (e, other, large, large),
            ),
            ("No evidence", (1.02 * other, e, large, large)),
            ("Worse than the last value: its error is 0.2% larger.", (1.0015 * e, e, large, large)),
            ("Better than all three", (0.9985 * e, e, large, large)),
            ("No evidence", (0.9995 * e, e, large, large)),
            ("No evidence", (1.0005 * e, e, large, large)),
        ):
            self.assertTrue(self.say(*errors).startswith(sentence), (sentence, self.say(*errors)))
        t = diebold_mariano(e, noisy)
        said = self.say(e, noisy, 1.0004 * e, 3 * e)  # the smallest t is that of the beaten one
        self.assertLess(t, diebold_mariano(e, 1.0004 * e))
        self.assertRegex(said, r"Better than the last value .*, but not shown .* than drift\.")

    def test_a_difference_counts_from_students_limit_of_30_values_on(self):
        e = np.ones(100)
        for t, sentence in ((2.0, "No evidence"), (2.1, "Better than all")):
            d = np.tile([1.0, -1.0], 50)
            d += t * d.std(ddof=1) / 10
            other = np.sqrt(e + d + 5 - 5 * (d < -1))
            other = np.sqrt(np.maximum(e**2 + d, 0))
            self.assertAlmostEqual(diebold_mariano(e, other), t, delta=0.03)
            self.assertTrue(self.say(e, other, other, other).startswith(sentence), t)

    def test_walks_with_and_without_drift_are_not_praised(self):
        noise = np.random.default_rng(8).normal(size=(3, 500))
        for values in (walk(1, 500), walk(2, 500), *np.cumprod(1.001 + 0.01 * noise, axis=1)):
            out = self.succeed(self.csv("walk.csv", values), "--epochs=20")
            self.assertNotIn("Better than all", out)

    def test_the_seasons_of_co2_are_learned_without_a_flag(self):
        out = self.succeed(CO2, "--column=ppm")
        self.assertIn("Better than the last value", out)
        self.assertLess(float(re.search(r"Theil U\D*(0\.\d+) ", out)[1]), 0.3)

    def test_seasons_below_zero_are_learned(self):
        out = self.succeed(self.csv("degrees.csv", season()), "--epochs=40")
        self.assertIn("degrees.csv, open, difference, saved in", out)
        self.assertIn("Better than", out)


NOAA = "1960,2,1960.12,1\n1960,1,1960.04,2\n1959,12,1959.96,3\n"
COIN = '"2025-10-20T00:00:00.000Z";"2025-10-20T23:59:59.999Z";"";"";5;"2025-10-20T23:59:59.999Z"\n'
COINS = "timeOpen;timeClose;timeHigh;timeLow;open;x\n" + COIN
COINS += COIN.replace("-20", "-19").replace(";5", ";4")
LINE = ",7.5,8,6,7,1,1577840399999,1,1,1,1,0\n"  # what follows the time at Binance
SERIES = "several series"
NO_ORDER = "in no order"
BOTH = "--order file.*--order reversed"


def days(*cells, name="date", sign=","):
    """A file of these times, with the values 1, 2, 3 and so on."""
    rows = [f'"{cell}"{sign}{value}\n' for value, cell in enumerate(cells, 1)]
    return f"{name}{sign}open\n" + "".join(rows)


UP = [1, 2, 3]
DOWN = [3, 2, 1]
MINUTES = [f"2020-01-01 {i // 60:02}:{i % 60:02}" for i in range(300)]
# A claim; the file; the values or what the refusal says; what stderr says; options.
FILES = [
    # What sites and programs write
    (
        "Yahoo",
        "Date,Open,Close\n2019-01-01,5.1,1\n2019-01-02,null,null\n2019-01-03,5.2,1\n",
        [5.1, 5.2],
    ),
    (
        "investing.com",
        '\ufeff"Date","Open"\n"01/15/2024","1,403.13"\n"01/12/2024","9.5"\n',
        [9.5, 1403.13],
    ),
    (
        "nasdaq.com",
        "Date,Close,Open\n01/15/2024,$1,$1403.13\n01/12/2024,$2,$1402.5\n",
        [1402.5, 1403.13],
    ),
    (
        "coingecko",
        "snapped_at,open\n2023-11-07 00:00:00 UTC,6\n2023-11-06 00:00:00 UTC,5\n",
        [5, 6],
    ),
    (
        "FRED, old",
        "DATE,VALUE\n2013-02-05,2.04\n2013-02-06,.\n2013-02-07,1.99\n",
        [2.04, 1.99],
        "",
        {"column": "VALUE"},
    ),
    (
        "stooq",
        "<PER>,<DATE>,<TIME>,<OPEN>\n5,20140613,100000,3.7\n5,20140613,095500,4.7\n",
        [4.7, 3.7],
    ),
    (
        "MetaTrader 5",
        "<DATE>\t<TIME>\t<OPEN>\n2024.01.02\t01:00:00\t4\n2024.01.02\t00:00:00\t5\n",
        [5, 4],
    ),
    (
        "Finam",
        "<DATE>;<TIME>;<OPEN>\n30/12/17;10:01;5\n31/12/17;10:01;6\n01/01/18;10:00;7\n",
        [5, 6, 7],
    ),
    (
        "Dukascopy",
        "Gmt time,Open\n13.01.2020 00:00:00.000,1.1\n01.02.2020 00:00:00.000,1.2\n",
        [1.1, 1.2],
    ),
    ("CoinMarketCap", COINS, [4, 5]),
    ("WSJ", "Date, Open, High\n01/03/22, 3195.36, 1\n12/31/21, 3203.92, 2\n", [3203.92, 3195.36]),
    (
        "Euronext",
        '"To 2024"\nLU1\nDate;Open;"No"\n31/12/2024;5.8;3\n30/12/2024;5.9;1\n',
        [5.9, 5.8],
    ),
    ("NSE", '"Date ","OPEN "\n"19-Feb-2020","1,502.00"\n"18-Feb-2020","503.00"\n', [503, 1502]),
    (
        "Macrotrends",
        '"Trends"\n\n"note, x"\n\ndate,open\n1986-05-29,2.6\n1986-05-30,2.7\n',
        [2.6, 2.7],
    ),
    ("pandas", ",Open\n2020-01-03,300.35\n2020-01-02,299\n", [299, 300.35]),
    (
        "NOAA",
        "year,month,decimal date,average\n" + NOAA,
        [3, 2, 1],
        "'decimal date'",
        {"column": "average"},
    ),
    ("UTF-16", "date,open\n2020-01-01,5\n".encode("utf-16"), "no CSV file in UTF-8"),
    ("another delimiter", "date|open\n2020-01-01|5\n", "divided by commas.*date.open"),
    ("empty", "", "no column"),
    # Which way the rows run
    (
        "ISO days rise",
        days("2019-01-02", "2019-01-03", "2020-12-31"),
        UP,
        "oldest 2019-01-02, newest 2020-12-31",
    ),
    (
        "ISO days fall",
        days("2020-12-31", "2019-01-03", "2019-01-02"),
        DOWN,
        "reversed.*oldest 2019-01-02, newest 2020-12-31",
    ),
    ("hours beside days", "Date,Hour,open\n2020-01-01,22,1\n2020-01-01,23,2\n2020-01-02,0,3\n", UP),
    ("nothing is sorted", days("2020-01-01", "2020-01-03", "2020-01-02"), BOTH),
    (
        "month first is found by a 13th",
        days("01/20/2020", "01/05/2020", "12/31/2019"),
        DOWN,
        "oldest 12/31/2019",
    ),
    ("day first is found by a 13th", days("30/12/2019", "05/01/2020", "02/02/2020"), UP),
    ("two readings that agree", days("01/02/2020", "02/02/2020", "03/03/2020"), UP),
    ("two readings that disagree", days("01/02/2020", "02/01/2020"), BOTH),
    ("01.02.21 is no year first", days("01.02.21", "01.02.22", "02.02.21"), NO_ORDER),
    ("quarters sorted as text", days("Q1 2019", "Q1 2020", "Q2 2019"), NO_ORDER),
    ("quarters, year last", days("Q3 2019", "Q4 2019", "Q1 2020"), UP),
    ("quarters, year first", days("2020Q3", "2020Q2", "2019Q4"), DOWN),
    ("months with an M", days("2019M11", "2019M12", "2020M01"), UP),
    ("two digits first before dashes", days("19-12-30", "19-12-31", "20-01-01"), UP),
    ("98 comes before 02", days("12/31/98", "01/05/02", "01/03/03"), UP),
    ("69 comes after 70", days("01/15/70", "01/15/69"), [1, 2]),
    ("a 13th month is none", days("2020-13-01", "2020-14-01", "2020-15-01"), NO_ORDER),
    ("a 32nd day is none", days("2020-01-31", "2020-01-32", "2020-02-01"), NO_ORDER),
    ("shampoo", days("1-01", "1-02", "2-01", name="Month"), UP),
    ("weeks have more than 12", days("2019-W51", "2019-W53", "2020-W01", name="Week"), UP),
    ("years", days("2005", "2004", "2003", name="Year"), DOWN),
    ("decimal years", days("1960.12", "1960.04", "1959.96", name="decimal date"), DOWN),
    ("12.2019 is no number", days("12.2019", "01.2020", name="month"), [1, 2]),
    ("a day and month in one number", days("31122019", "01012020"), NO_ORDER),
    ("yyyymmdd", days("20191231", "20200101", "20200102"), UP),
    # Words
    ("March 3, 2020", days("March 3, 2020", "Feb 9, 2020", "Dec 31, 2019"), DOWN),
    ("3. März 2020", days("9. Februar 2020", "3. März 2020", "1. Dez. 2020"), UP),
    ("French, Spanish", days("3 août 2020", "1 septembre 2020", "2 déc. 2020"), UP),
    (
        "3 de marzo de 2020",
        days("9 de enero de 2020", "3 de marzo de 2020", "1 de abril de 2020"),
        UP,
    ),
    ("weekdays", days("Fri, Jan 3, 2020", "Thu, Jan 2, 2020", "Tue, Dec 31, 2019"), DOWN),
    ("Mar-20 is March", days("Dec-19", "Jan-20", "Mar-20"), UP),
    (
        "Chinese",
        "日期,收盘\n2020年12月2日,2\n2020年12月1日,1\n",
        [1, 2],
        "日期",
        {"column": "收盘"},
    ),
    ("Korean", days("2020- 12- 02", "2020- 12- 01", "2020- 11- 30", name="날짜"), DOWN),
    # Times of day
    ("seconds", days("2020-01-01 00:00:01", "2020-01-01 00:00:02", "2020-01-01 00:01:00"), UP),
    ("1974 in seconds", days("150000003", "150000002", "150000001", name="t"), DOWN),
    (
        "1973 in seconds, or a number",
        days("99999999", "99999998", name="t"),
        [1, 2],
        "order of the file",
    ),
    ("T and Z", days("2020-01-01T09:00Z", "2020-01-01T10:00Z", "2020-01-02T01:00Z"), UP),
    (
        "9:30 comes before 16:00",
        days("2020-01-02 16:00", "2020-01-02 9:30", "2020-01-01 17:00"),
        DOWN,
    ),
    (
        "noon comes after 11 AM",
        days("1/2/2024 11:00 AM", "1/2/2024 12:00 PM", "1/2/2024 1:00 PM"),
        UP,
    ),
    (
        "midnight comes before 1 AM",
        days("1/2/2024 12:30 AM", "1/2/2024 1:00 AM", "1/2/2024 2:00 AM"),
        UP,
    ),
    ("11-PM", days("2020-07-05 11-PM", "2020-07-05 12-PM", "2020-07-05 11-AM"), DOWN),
    ("offsets are subtracted", days("2020-01-01 02:00+02:00", "2020-01-01 02:00+01:00"), [1, 2]),
    ("an hour that comes twice", days("2024-11-03T01:30-05:00", "2024-11-03T01:30-04:00"), [2, 1]),
    ("minutes of an offset", days("2020-01-01 02:00+0545", "2020-01-01 02:00+0530"), [1, 2]),
    ("minutes west of Greenwich", days("2020-01-01 02:00-0330", "2020-01-01 02:00-0300"), [2, 1]),
    ("an offset over midnight", days("2020-01-02 00:30+02:00", "2020-01-01 23:00+00:00"), [1, 2]),
    (".25 comes before .5", days("2020-01-01 00:00:00.5", "2020-01-01 00:00:00.25"), [2, 1]),
    ("nanoseconds", days("2020-01-01 00:00:00.000000002", "2020-01-01 00:00:00.000000001"), [2, 1]),
    (
        "ms and s are one unit",
        days("1586998800000", "1586995200", "1586991600000", name="unix"),
        DOWN,
    ),
    (
        "us and ms are one unit",
        days("1586998800000000", "1586995200000", "1586991600000000", name="unix"),
        DOWN,
    ),
    ("2001 in seconds", days("999999999", "1000000000", "1000000001", name="unix"), UP),
    ("ns to the last digit", days("1586998800000000002", "1586998800000000001", name="ts"), [2, 1]),
    # Which columns are times
    ("t in ms in the first column", days("1586998800000", "1586995200000", name="t"), [2, 1]),
    ("an index is no time", days("3", "2", "1", name=""), UP, "order of the file"),
    ("a countdown", days("30", "29", "28", name="Days to expiry"), UP, "order of the file"),
    ("whole words", days("3", "2", "1", name="Monthly revenue"), UP, "order of the file"),
    (
        "a price in the first column",
        days("2019.12", "2019.11", "2019.10", name="high"),
        UP,
        "order of the file",
    ),
    (
        "a price with a decimal comma",
        "high;open\n2019,12;1\n2019,11;2\n",
        [1, 2],
        "order of the file",
    ),
    (
        "thousands are no date",
        days("1,012.20", "1,003.13", "1,001.05", name="high"),
        UP,
        "order of the file",
    ),
    ("a score is no date", days("2-10", "2-09", "1-08", name="goals"), UP, "order of the file"),
    (
        "a number above 10^8, not first",
        "open,x\n1,300000000\n2,200000000\n",
        [1, 2],
        "order of the file",
    ),
    (
        "the values are no times",
        "time\n3\n2\n1\n",
        [3, 2, 1],
        "order of the file",
        {"column": "time"},
    ),
    (
        "a time that does not vary",
        days("2020-01-01", "2020-01-01", "2020-01-01"),
        UP,
        "order of the file",
    ),
    ("Fecha", "Fecha,open\n2020-01-02,1\n2020-01-01,2\n", [2, 1], "fecha"),
    ("ts", "x,ts,open\n1,30,1\n1,20,2\n", [2, 1], "'ts'"),
    (
        "two that disagree",
        "date,day,open\n2020-01-02,2020-01-01,1\n2020-01-01,2020-01-02,2\n",
        BOTH,
    ),
    (
        "date and time",
        "Date,Time,open\n2020-01-02,16:00,1\n2020-01-02,9:30,2\n2020-01-01,17:00,3\n",
        DOWN,
        "date time",
    ),
    (
        "time and date",
        "Time,Date,open\n9:30,2020-01-01,1\n16:00,2020-01-01,2\n9:30,2020-01-02,3\n",
        UP,
    ),
    ("year, month and day", "Year,Month,Day,open\n2019,12,30,1\n2019,12,31,2\n2020,1,1,3\n", UP),
    (
        "all three are needed",
        "Year,Month,Day,open\n2019,11,29,1\n2019,11,30,2\n2019,12,1,3\n2020,1,1,4\n",
        [1, 2, 3, 4],
    ),
    (
        "year, month and day within a year",
        "Year,Month,Day,open\n2019,1,30,1\n2019,1,31,2\n2019,2,1,3\n",
        UP,
    ),
    ("day, month and year", "Day,Month,Year,open\n30,12,2019,1\n31,12,2019,2\n1,1,2020,3\n", UP),
    ("HistData", "date,time,open\n20120201,235900,1\n20120202,000000,2\n20120202,000100,3\n", UP),
    # Twice
    (
        "each day twice",
        days("2020-01-01", "2020-01-01", "2020-01-02", "2020-01-02"),
        "2020-01-01.*" + SERIES,
    ),
    (
        "one symbol after the other",
        days("2020-01-01", "2020-01-02", "2020-01-01", "2020-01-02"),
        "'2020-01-01' to '2020-01-02'.*" + SERIES,
    ),
    (
        "1 % twice is kept",
        days(*sorted(MINUTES + MINUTES[:3])),
        [*range(1, 304)],
        "twice: 3; .*same: 0",
    ),
    ("2 % twice is several series", days(*sorted(MINUTES + MINUTES[:6])), SERIES),
    (
        "a repeated row counts once",
        "unix,open,n\n1586998800000,3.0,7\n1586998800.0,3,NULL\n1586995200,3,7\n",
        [3, 3],
        "twice: 1; .*same: 1",
    ),
    ("a microsecond apart", "ts,open\n1586998800000001,3\n1586998800000002,3\n", [3, 3]),
    (
        "another price at one time",
        days(*sorted(MINUTES + MINUTES[:1])),
        [*range(1, 302)],
        "twice: 1; .*same: 0",
    ),
    (
        "another name at one time",
        "date,name,open\n2020-01-01,A,5\n2020-01-01,B,6\n2020-01-02,A,5\n2020-01-02,B,6\n",
        SERIES,
    ),
    (
        "a name without a digit is not empty",
        "name,date,open\nAA,2020-01-01,5\nA1,2020-01-01,5\n",
        [5, 5],
    ),
    ("three numbers are no time of day", days(*MINUTES, "2020-01-01 1.2.3"), NO_ORDER),
    ("negative times", days("-5", "-4", "-3", name="time"), UP),
    ("seconds before 1970", days("-314294", "-317894", "-321494", name="time"), DOWN),
    ("a month in words after the year", days("2019-Nov-30", "2019-Dec-02", "2020-Jan-01"), UP),
    ("an address is no date", days("10.0.0.3", "10.0.0.2", name="host"), [1, 2], "of the file"),
    ("t in s in the first column", days("1586998800", "1586995200", name="t"), [2, 1]),
    ("no time of day with a point", days("2019-12-31 20.07", "2019-12-31 22.15"), NO_ORDER),
    ("a day after a month without a gap", days("30Dec2019", "31Dec2019", "01Jan2020"), UP),
    ("the basic format", days("20191231T235900", "20200101T000100"), [1, 2]),
    (
        "an hour after a date",
        "Date,Hour,open\n31/12/2019,22,1\n31/12/2019,23,2\n01/01/2020,0,3\n",
        UP,
    ),
    ("the 30th of February", days("2020-02-28", "2020-02-29", "2020-02-30"), NO_ORDER),
    ("a time is missing", days("2020-01-01", "", "2020-01-03"), NO_ORDER),
    ("unlike the others", days("11:34", "01/15/2024", "01/12/2024"), NO_ORDER),
    ("the time is another", "date,open\n2020-01-01,5\n2020-01-02,5\n", [5, 5]),
    # --order
    ("order file", days("2020-01-02", "2020-01-01"), [1, 2], "order", {"order": "file"}),
    ("order reversed", days("x", "y"), [2, 1], "file, reversed", {"order": "reversed"}),
    ("no times", "open\n6\n5\n", [6, 5], "order of the file"),
    # The header
    ("a title that names the column", "Open\nDate,Open\n2020-01-01,5\n", [5]),
    ("a title that names it in another format", "Open, daily\nDate;Open\n2020-01-01;5\n", [5]),
    ("a column 0", "date,0\n2020-01-01,0\n2020-01-02,7\n", [0, 7], "", {"column": "0"}),
    ("case, spaces and angles", "<DATE>\t <OPEN> \n2020-01-01\t5\n", [5], "", {"column": " Open"}),
    ("a header in line 50", "a note\n" * 49 + "open\n5\n6\n", [5, 6]),
    ("a header in line 51", "a note\n" * 50 + "open\n5\n6\n", "no column 'open'"),
    (
        "60 empty rows first",
        "date,open\n" + "2020-01-01,.\n" * 60 + "2020-01-02,5\n",
        [5],
        "60 skipped, from line 2",
    ),
    ("more cells than names", "date,open\n2020-01-01,5\n2020-01-02,5,\n", "line 3 has more cells"),
    (
        "fewer cells",
        "open,date\n5,2020-01-01\n6,2020-01-02\n\n,\n",
        [5, 6],
        "1 skipped, from line 5",
    ),
    ("a short row", "date,open\n2020-01-01,5\n2020-01-02\n", [5], "1 skipped, from line 3"),
    ("the column twice", "open,open\n1,2\n", "no column 'open', or two"),
    ("yfinance", "Price,Open\nTicker,0700.HK\nDate,\n2023-11-06,2\n2023-11-07,3\n", [2, 3]),
    ("a code in the first row", "date,open\n2020-01-01,0700.HK\n2020-01-02,5\n", "line 2.*0700.HK"),
    ("Binance", "1577836800000" + LINE + "1577840400000" + LINE.replace("7.5", "9"), [7.5, 9]),
    ("Binance, the close", "1577836800000" + LINE, [7], "", {"column": "close"}),
    ("Binance, the high", "1577836800000" + LINE, [8], "", {"column": "high"}),
    ("Binance, the low", "1577836800000" + LINE, [6], "", {"column": "low"}),
    ("Binance, the volume", "1577836800000" + LINE, [1], "", {"column": "volume"}),
    ("Binance not in the second line", "x\n1577836800000" + LINE, "no column"),
    ("no header", "2020-01-01,5\n", "no column 'open'.*2020-01-01,5"),
    ("no value", "date,open\n2020-01-01,null\n", "no number in column 'open'"),
    ("UTF-8 with a mark", "\ufeffopen\n5\n", [5]),
    ("Windows line ends", "open\r\n5\r\n6\r\n", [5, 6]),
    ("GBK", "日期,open\n".encode("gbk"), "UTF-8"),
    ("gzip", b"\x1f\x8b\x08\0", "gzip"),
    ("zip", b"PK\x03\x04\x14\0\x06\0\x08\0\xfe", "zip"),
    ("an open quote", 'open,x\n5,"1\n6,1\n', "CSV"),
    ("a line break in a cell", 'open,x\n5,"a\nb"\nz9,c\n', "line 4.*z9"),
    # Numbers
    ("an unary minus", "open\n-36.98\n0\n", [-36.98, 0]),
    ("thousands", 'open\n"1,403.13"\n"-1,403,131"\n950.5\n', [1403.13, -1403131, 950.5]),
    ("currency", 'open\n$5\n-$5\n$-5\n5 €\n"-$1,403.13"\n', [5, -5, -5, 5, -1403.13]),
    (
        "spaces around",
        'x,open\n1, $5\n1,$ 5\n1,5 € \n1,$.5\n1," 1,403.13"\n',
        [5, 5, 5, 0.5, 1403.13],
    ),
    ("spaces and apostrophes", "open\n1 234.5\n1'234.5\n1\xa0234\n", [1234.5, 1234.5, 1234]),
    ("12 34 is no number", "open\n12 34\n5\n", "line 2.*12 34"),
    ("exponents", "open\n1e5\n-1.5E-3\n", [1e5, -0.0015]),
    ("inf", "open\n5\ninf\n", "line 3.*inf"),
    ("1e999", "open\n5\n1e999\n", "line 3.*1e999"),
    ("a suffix", "open\n5\n1.2K\n", "line 3.*1.2K"),
    ("a percentage", "open\n5\n5%\n", "line 3.*5%"),
    (
        "no digit is no value",
        "open,x\n5,\nnull,\n-,\nNaN,\n?,\n6,\n",
        [5, 6],
        "4 skipped, from line 3",
    ),
    ("1,403 is unclear", 'open\n"1,403"\n', r"line 2.*1,403.*--decimal \. or --decimal ,"),
    ("1,403 with a flag", 'open\n"1,403"\n', [1403], "", {"decimal": "."}),
    ("1,403 with the other flag", 'open\n"1,403"\n', [1.403], "", {"decimal": ","}),
    ("1.403,13", "open;x\n1.403,13;1\n", "line 2.*--decimal"),
    (
        "1.403,13 with a flag",
        "open;x\n1.403,13;1\n1.403;1\n11,8;1\n",
        [1403.13, 1403, 11.8],
        "",
        {"decimal": ","},
    ),
    ("1,5 is no thousand", 'open\n"1,5"\n', "line 2.*1,5", "", {"decimal": "."}),
    ("0,845 is no thousand", 'open\n"0,845"\n', "line 2.*0,845", "", {"decimal": "."}),
    ("1405.00 unquoted", "date,open\n2020-01-01,1,405.00\n", "more cells"),
    ("1.050 among commas", "open,x\n1.050,1\n", [1.05]),
    ("1.050 among semicolons", "open;x\n1.050;1\n", "line 2.*1.050"),
    ("1050 among semicolons", "open;x\n1050;1\n1.5;1\n", [1050, 1.5]),
    ("1.050 with a flag", "open;x\n1.050;1\n", [1.05], "", {"decimal": "."}),
    ("1.050 beside thousands", 'open,x\n1.050,\n998,"1,050.5"\n', [1.05, 998]),
]


class TestFiles(InFolder):
    def load(self, text, *args, **options):
        """The values in a text, and what is told about them."""
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            values = load_prices(self.write("my.csv", text), *args, **options)
        return values.tolist(), err.getvalue()

    def test_files_of_sites_and_of_people_are_read_or_refused(self):
        for claim, text, expected, *more in FILES:
            told = more[0] if more else ""
            options = more[1] if more[1:] else {}
            with self.subTest(claim):
                if isinstance(expected, list):
                    values, err = self.load(text, **options)
                    self.assertEqual(values, expected)
                    self.assertRegex(err, f"(?s){told}")
                    self.assertIn("order", err)
                else:
                    with self.assertRaisesRegex(UserError, f"(?s){expected}") as refusal:
                        self.load(text, **options)
                    self.assertNotIn("\n", str(refusal.exception))

    def test_what_is_told_names_the_two_ends_and_what_is_skipped(self):
        told = self.load("open,when\n6,2020-01-02\n5,2020-01-01\n")[1]
        self.assertEqual(
            told, "my.csv: order of 'when' (reversed): oldest 2020-01-01, newest 2020-01-02\n"
        )
        self.assertEqual(
            self.load("open\n6\n5\n")[1],
            "my.csv: no times used: the rows are in the order of the file\n",
        )
        told = self.load("date,open\n2020-01-01,6\n2020-01-01,6\n2020-01-02,.\n2020-01-03,7\n")[1]
        lines = told.splitlines()
        self.assertEqual(lines[0], "my.csv: rows without a value: 1 skipped, from line 4 on")
        self.assertEqual(
            lines[2],
            "my.csv: rows with the time of the row before, which is there twice: 1; of them "
            "skipped, as the value is the same: 1",
        )

    def test_the_machines_time_zone_is_nothing_to_a_file(self):
        text = "date,open\n2024-03-31 01:30,1\n2024-03-31 03:15+01:00,2\n2024-03-31 04:00,3\n"
        for zone in ("UTC", "America/New_York", "Asia/Kolkata"):
            with mock.patch.dict(os.environ, TZ=zone):
                time.tzset()
                self.assertEqual(self.load(text)[0], [1, 2, 3])

    def test_values_are_as_precise_as_a_float_is(self):
        values = [100_000_000.01, 99_999_999.99, 123_456_789.123]
        self.assertEqual(self.load("open\n" + "".join(f"{value}\n" for value in values))[0], values)
        data = StockDataset(np.add(values * 20, np.arange(60)), 5, "difference")
        self.assertEqual(data.values.dtype, np.float64)
        x, target = data[0]
        move = (data.values[5] - data.values[4]) / data.scale
        self.assertAlmostEqual(target.item(), move, places=5)

    def test_all_rows_are_read_whatever_stands_in_quotes_near_the_50th_line(self):
        for at in (44, 47, 48, 49, 50, 150):
            lines = [f"2020-{1 + i // 28:02}-{1 + i % 28:02},x,{i}" for i in range(200)]
            lines[at] = lines[at].replace("x", '"a,""b\nc"')
            values, _ = self.load("date,name,open\n" + "\n".join(lines))
            self.assertEqual(values, list(range(200)), at)
            lines[190] = "2020-12-01,x,a8c"
            with self.assertRaisesRegex(UserError, "line 193 has 'a8c'"):  # counted by csv
                self.load("date,name,open\n" + "\n".join(lines))

    def test_a_header_below_other_lines_is_found_among_the_first_50(self):
        rows = "date,open\n2020-01-02,6\n2020-01-01,5\n"
        self.assertEqual(self.load("a note\n" * 49 + rows)[0], [5, 6])
        with self.assertRaisesRegex(UserError, "no column 'open'"):
            self.load("a note\n" * 50 + rows)

    @unittest.skipUnless(hasattr(os, "mkfifo"), "needs named pipes")
    def test_a_pipe_is_read_to_its_last_row(self):
        os.mkfifo("pipe.csv")
        writer = threading.Thread(target=self.csv, args=("pipe.csv", range(1, 30_001)))
        writer.start()
        self.assertEqual(load_quietly("pipe.csv").tolist(), list(range(1, 30_001)))
        writer.join()


@unittest.skipUnless(os.name == "posix", "needs a POSIX system")
class TestSystem(InFolder):
    def test_a_run_killed_stopped_or_cut_by_head_ends_with_the_same_bits(self):
        flags = [*self.flags, "--epochs=72"]
        out = self.succeed(*flags, "--checkpoint=straight.pt")
        self.assertEqual(len(re.findall(r"\n +\d+(?= +\d\.\d+ +\d\.\d+ +\d\.\d+\n)", out)), 12)
        command = flags
        for row, end in (("6", signal.SIGPIPE), ("24", signal.SIGKILL), ("42", signal.SIGINT)):
            process = self.start(*command, row=row)
            if end == signal.SIGPIPE:
                process.stdout.close()  # all that "| head" does when it has seen enough
            else:
                process.send_signal(end)
                out = process.stdout.read()
            err = process.stderr.read()
            self.assertNotIn("Traceback", err)
            self.assertEqual(process.wait(), 130 if end == signal.SIGINT else -end)
            command = ["resume", "stock_rnn.pt"]
        self.assertRegex(
            out,
            "\nstopped: all up to the last epoch is saved in stock_rnn.pt\n"
            "to go on:  python .*stock_rnn.py resume stock_rnn.pt\n",
        )
        os.remove("values.csv")  # the checkpoint has them
        self.succeed(*command)
        self.assertEqual(self.contents("straight.pt"), self.contents("stock_rnn.pt"))

    def test_a_new_run_takes_a_free_name_whatever_stands_there_and_keeps_it_from_others(self):
        self.write("stock_rnn.pt", "a thesis")
        Path("stock_rnn-2.pt").symlink_to("nowhere.pt")
        flags = [*self.flags, "--epochs=30"]
        runs = [self.start(*flags, f"--seed={seed}") for seed in (0, 1)]
        outs = [process.communicate()[0] for process in runs]
        saved = [re.search("saved in (.*)", out)[1] for out in outs]
        self.assertEqual(set(saved), {"stock_rnn-3.pt", "stock_rnn-4.pt"})
        for seed, path in enumerate(saved):
            self.succeed(*flags, f"--seed={seed}", f"--checkpoint=alone{seed}.pt")
            self.assertEqual(self.contents(path), self.contents(f"alone{seed}.pt"))
        self.assertNotEqual(
            self.contents("alone0.pt")["state"], self.contents("alone1.pt")["state"]
        )
        self.assertEqual(Path("stock_rnn.pt").read_text(), "a thesis")
        self.assertFalse(Path("nowhere.pt").exists())

    def test_of_two_processes_on_one_checkpoint_each_file_is_whole_and_the_last_one_wins(self):
        flags = [*self.flags, "--epochs=240"]
        self.succeed(*flags, "--checkpoint=straight.pt")
        first = self.start(*flags, row="20")
        second = self.start("resume", "stock_rnn.pt")
        for process in (first, second):
            process.communicate()
            self.assertEqual(process.returncode, 0)
        self.assertEqual(self.contents("stock_rnn.pt"), self.contents("straight.pt"))
        self.assertEqual(sorted(self.files()), ["stock_rnn.pt", "straight.pt", "values.csv"])

    def test_a_link_stays_a_link_and_all_is_written_in_the_folder_of_its_file(self):
        Path("disk").mkdir()
        self.train("--checkpoint=disk/real.pt")
        Path("disk/real.pt").chmod(0o600)
        Path("link.pt").symlink_to("disk/real.pt")
        with mock.patch.object(os, "replace", side_effect=os.replace) as replace:
            self.succeed("resume", "link.pt", "--epochs=4")
        names = [Path(name) for call in replace.call_args_list for name in call.args]
        self.assertEqual({name.resolve().parent for name in names}, {Path("disk").resolve()})
        self.assertTrue(Path("link.pt").is_symlink())
        self.assertEqual(len(load_checkpoint("disk/real.pt")[3]["history"]["val_loss"]), 4)
        self.assertEqual(Path("disk/real.pt").stat().st_mode & 0o777, 0o600)

    def test_a_full_disk_or_a_read_only_folder_is_told_before_training_and_costs_nothing(self):
        import resource

        self.train()
        user = os.geteuid()
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        full = ((1000, limit[1]), 0o755, user, "File too large: 'stock_rnn.pt'")
        read_only = (limit, 0o555, user or 65534, "denied: 'stock_rnn.pt'")  # root may write
        for size, mode, other, said in (full, read_only):
            for args in (self.flags, ["resume", "stock_rnn.pt", "--epochs=9"]):
                resource.setrlimit(resource.RLIMIT_FSIZE, size)
                os.chmod(".", mode)
                os.seteuid(other)
                try:
                    self.refuse(said, *args)
                finally:
                    os.seteuid(user)
                    os.chmod(".", 0o755)
                    resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    def test_a_bug_in_a_copy_is_no_mistake_of_the_user_in_every_command(self):
        self.train()
        source = Path(SCRIPT).read_text(encoding="utf-8")
        for line, wrong in (
            ("self.linear(a[:, -1])", "self.linear(a.T)"),
            ("        super().__init__()\n", "        super().__init()\n"),
            ("nn.Linear(hidden_size, 1)", "nn.Linear(hiden_size, 1)"),
        ):
            self.assertIn(line, source)
            copy_of = types.ModuleType("copy_of")
            copy_of.__file__ = SCRIPT
            exec(source.replace(line, wrong), vars(copy_of))
            for args in (self.flags, ["resume", "stock_rnn.pt", "--epochs=9"]):
                with (
                    self.assertRaises(Exception) as bug,
                    contextlib.redirect_stdout(io.StringIO()),
                    contextlib.redirect_stderr(io.StringIO()),
                ):
                    copy_of.main(args)
                self.assertNotIsInstance(bug.exception, (copy_of.UserError, OSError), wrong)

    def test_a_full_memory_is_told_and_other_errors_of_torch_keep_their_traceback(self):
        full = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")
        with mock.patch.object(stock_rnn, "train_command", side_effect=full):
            self.refuse("out of memory", *self.flags)
        other = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        with (
            mock.patch.object(stock_rnn, "train_command", side_effect=other),
            self.assertRaises(RuntimeError),
        ):
            self.main(*self.flags)

    def run_script(self, script, *args, encoding, is_terminal):
        """Run a script as the main program; its exit status and what its outputs have as bytes."""

        class Output(io.TextIOWrapper):
            def isatty(self):
                return is_terminal

        outputs = [Output(io.BytesIO(), encoding=encoding) for _ in range(2)]
        self.addCleanup(signal.signal, signal.SIGPIPE, signal.getsignal(signal.SIGPIPE))
        with (
            mock.patch.multiple(sys, argv=[script, *args], stdout=outputs[0], stderr=outputs[1]),
            self.assertRaises(SystemExit) as end,
        ):
            runpy.run_path(script, run_name="__main__")
        for output in outputs:
            output.flush()
        return end.exception.code or 0, *(output.buffer.getvalue() for output in outputs)

    def test_the_script_alone_asks_for_a_file(self):
        shutil.copy(SCRIPT, "stock_rnn.py")
        ends = self.run_script("stock_rnn.py", encoding="utf-8", is_terminal=False)
        said = b"stock_rnn.py: error: give a CSV file: python stock_rnn.py train my.csv\n"
        self.assertEqual(ends, (2, b"", said))

    def test_names_go_to_a_pipe_in_utf_8_and_to_a_terminal_as_it_can_show_them(self):
        self.csv("café.csv", walk(steps=120))
        for is_terminal, shown in ((False, "café.csv".encode()), (True, b"caf?.csv")):
            options = {"encoding": "ascii", "is_terminal": is_terminal}
            status, out, err = self.run_script(SCRIPT, "café.csv", *SMALL, **options)
            self.assertEqual(status, 0)
            self.assertTrue(out.startswith(shown))
            self.assertTrue(err.startswith(shown + b": no times used"))

    def test_one_thread_is_used(self):
        self.write("ask.py", "import stock_rnn, torch; print(torch.get_num_threads())")
        env = {**os.environ, "PYTHONPATH": str(HERE)}
        del env["OMP_NUM_THREADS"]
        out, _ = self.start(script="ask.py", env=env).communicate()
        self.assertEqual(out, "1\n")

    def test_values_from_a_pipe_are_read_and_resumed_and_no_command_that_fails_is_printed(self):
        os.mkfifo("pipe.csv")
        writer = threading.Thread(target=self.csv, args=("pipe.csv", walk(steps=120)))
        writer.start()
        out = self.succeed("pipe.csv", *SMALL)
        writer.join()
        self.assertNotIn("predict", out.split("Diebold")[1].split("t of model")[1])
        self.succeed("resume", "stock_rnn.pt", "--epochs=5")


class TestCommandLine(InFolder):
    def table(self, out):
        """The rows of the table of a test: the numbers in it by their labels."""
        found = re.findall(r"^(root|Theil|moves|Diebold)\D*? {2,}(.*)$", out, re.MULTILINE)
        return {label: cells.replace(",", "").split() for label, cells in found}

    def test_train_test_and_predict_work_on_the_data_that_comes_along(self):
        out = self.succeed("--epochs=3")
        self.assertRegex(out, r"\Abtcusd_20h.csv, open, relative, saved in stock_rnn.pt\n")
        self.assertIn("\n595 to train on, 131 to validate, 131 to test\n", out)
        rows = r"(?s)of the naive\n +1 .*\n +2 .*\n +3 .* used: the.*model +naive +drift +linear\n"
        self.assertRegex(out, rows + ".*(Better|Worse|No )")
        command = shlex.join(["python", sys.argv[0], "predict", "stock_rnn.pt", BITCOIN])
        self.assertTrue(out.endswith(f"\nfor the next value:\n{command}\n"))
        again = self.succeed("test", "stock_rnn.pt", BITCOIN)
        self.assertRegex(
            again, r"the first 746 values end where .* do(?s:.*)131 values of this file\n"
        )
        self.assertIn(again[again.index("root mean") :], out)
        other = self.succeed("test", "stock_rnn.pt", CO2, "--column=ppm")
        self.assertRegex(other, "^\ntest on 506 values of this file\n")

    def test_what_is_printed_is_what_the_functions_give(self):
        self.csv("values.csv", season() + 50)
        out = self.train("--hidden-size=8", "--learning-rate=0.01")
        train_set, val_set, test_set = split(load_quietly("values.csv"), 5)
        model, _, _, state = load_checkpoint("stock_rnn.pt")
        val_loader = DataLoader(val_set, 64)
        val_loss = [evaluate(RNN(8), val_loader, MSE), *state["history"]["val_loss"]]
        self.assertNotEqual(evaluate(model, DataLoader(test_set, 64), MSE), min(val_loss))
        self.assertAlmostEqual(evaluate(model, val_loader, MSE), min(val_loss), places=6)
        for epoch in (1, 2, 3):
            cells = [f"{epoch:>8}", f"{state['history']['train_loss'][epoch - 1]:.6f}"]
            cells += [f"{val_loss[epoch]:.6f}", f"{val_loss[epoch] / val_loss[0]:.4f}"]
            row = r"\n" + " +".join(map(re.escape, cells))
            self.assertRegex(out, row + "\n")
            if epoch == state["best_epoch"]:
                self.assertRegex(out, row + "  used: the lowest\n")
        self.assertGreater(state["best_epoch"], 0)
        inside = shares_inside(model, test_set, intervals(model, val_set))[0]
        self.assertIn(f"\ninside the 80 % interval {inside:>17.1%}\n", out)
        errors = errors_of(model, test_set, train_set)
        figures = [score(error, errors["naive"]) for error in errors.values()]
        t = [diebold_mariano(errors["model"], other) for other in [*errors.values()][1:]]
        rows = {
            "root": [f"{f['rmse']:.6g}" for f in figures],
            "Theil": [f"{f['theil_u']:.4f}" for f in figures],
            "moves": [f"{f['direction']:.1%}".replace("nan%", "-") for f in figures],
            "Diebold": ["-", *(f"{value:.2f}" for value in t)],
        }
        self.assertEqual(self.table(out), rows)
        self.assertEqual(rows["moves"][1], "-")  # the naive forecast sees no move
        title = f"test on 45 values never seen, by the weights of epoch {state['best_epoch']}\n"
        self.assertIn(title, out)
        self.assertIn(stock_rnn.verdict(errors), out)

    def test_the_command_line_trains_as_the_functions_do(self):
        self.train("--batch-size=9", "--learning-rate=0.01", "--cell=gru", "--seed=3")
        train_set, val_set, _ = split(load_quietly("values.csv"), 5)
        torch.manual_seed(3)
        model = RNN(4, "gru")
        optimizer, scheduler = stock_rnn.adamw(model, 3, 0.01)
        loaders = DataLoader(train_set, 9, shuffle=True), DataLoader(val_set, 1024)
        history = stock_rnn.train(model, *loaders, MSE, optimizer, scheduler, epochs=3)
        self.assertEqual(load_checkpoint("stock_rnn.pt")[3]["history"], history)

    def test_no_test_value_reaches_the_training_or_the_simple_forecasts_on_the_command_line(self):
        outs = []
        values = walk(steps=240)
        for name, tail in (("one", values[204:]), ("other", walk(9)[:36])):
            self.csv(f"{name}.csv", [*values[:204], *tail])
            out = self.succeed(f"{name}.csv", *SMALL, f"--checkpoint={name}.pt")
            rows = out[out.index("epoch") : out.index("test on")]
            self.csv("third.csv", walk(3, 60))
            outs.append((rows, self.succeed("test", f"{name}.pt", "third.csv")))
        self.assertEqual(*outs)
        self.assertEqual(self.contents("one.pt")["state"], self.contents("other.pt")["state"])

    def test_an_untrained_model_that_is_kept_is_said_and_its_signs_are_none(self):
        out = self.train("--learning-rate=5")
        self.assertIn("test on 18 values never seen, by the weights of epoch 0 (untrained)\n", out)
        self.assertRegex(out, r"\n {7}0 {15}- +\d\.\d{6} +1.0000  used: the lowest\n")
        self.assertEqual(self.table(out)["moves"][:2], ["-", "-"])
        self.csv("sine.csv", 50 + np.sin(np.arange(200) / 4))
        self.assertNotIn("untrained", self.succeed("sine.csv", *SMALL))

    def test_test_finds_the_last_window_of_the_training_anywhere_in_a_file(self):
        self.train()
        values = load_quietly("values.csv")
        seen = 120 - int(120 * 0.15)
        for start, more in ((1, []), (50, [900, 910]), (seen - 10, [])):
            self.csv("part.csv", [*values[start:], *more])
            out = self.succeed("test", "stock_rnn.pt", "part.csv")
            self.assertIn(f"the first {seen - start} values end where those", out)
            self.assertIn(f"test on {120 - seen + len(more)} values of this file\n", out)
        self.csv("part.csv", [*values[seen - 9 :], 900])  # one value too few to be sure
        self.assertIn("test on 23 values of", self.succeed("test", "stock_rnn.pt", "part.csv"))
        self.csv("longer.csv", [5.0, 7.0, *values[:seen], 900, 905])
        self.assertIn(
            f"the first {seen + 2} val", self.succeed("test", "stock_rnn.pt", "longer.csv")
        )
        for part in (values[:seen], values[20:70], values[:9]):
            self.csv("part.csv", part)
            self.refuse("trained on all of these", "test", "stock_rnn.pt", "part.csv")

    def test_values_that_repeat_are_not_taken_for_more_than_was_seen(self):
        self.csv("week.csv", [3, 5, 9, 4, 2, 1, 1] * 40)
        self.succeed("week.csv", *SMALL)
        seen = 280 - int(280 * 0.15)
        self.assertIn(f"the first {seen} values", self.succeed("test", "stock_rnn.pt", "week.csv"))

    def test_a_module_may_keep_what_it_computed_while_it_was_validated(self):
        class Keeping(RNN):
            kept = None

            def forward(self, x):
                if self.kept is None:
                    self.kept = super().forward(x).mean()
                return super().forward(x) + self.kept.detach() * self.linear.weight.mean()

        learn(model=Keeping(4))

    def test_windows_of_one_value_are_not_taken_for_seen_ones(self):
        self.csv("days.csv", np.arange(1, 121) % 7 + 20.5)
        self.succeed("days.csv", "--seq-length=1", "--epochs=1", "--normalise=difference")
        self.csv("other.csv", np.arange(1, 50) % 5 + 20.5)
        self.assertNotIn("end where", self.succeed("test", "stock_rnn.pt", "other.csv"))

    def test_predict_prints_plain_numbers(self):
        self.succeed(self.csv("sine.csv", 50 + np.sin(np.arange(400) / 4)), *SMALL)
        values = [*np.linspace(1, 2, 4), 12345.5]  # a window is enough
        status, out, _ = self.main(
            "predict", "stock_rnn.pt", self.csv("few.csv", values), "--steps=3"
        )
        rows = [[float(cell) for cell in line.split()] for line in out.splitlines()]
        self.assertEqual((status, len(rows), "e" in out), (0, 3, False))
        model, settings, known, _ = load_checkpoint("stock_rnn.pt")
        train_set, val_set, _ = split(known, 5)
        found = forecast(model, train_set.with_values(values), 3)[0]
        unit = train_set.scale * 12345.5
        expected = np.column_stack([found, found[:, None] + unit * intervals(model, val_set, 3)])
        np.testing.assert_allclose(rows, expected, rtol=1e-7)
        self.assertEqual(len(self.succeed("predict", "stock_rnn.pt", "few.csv").split()), 3)
        mocked = np.array([[60.0, 2e-7, 123456789012.0]])
        with (
            mock.patch.object(stock_rnn, "forecast", return_value=mocked),
            mock.patch.object(stock_rnn, "intervals", return_value=np.zeros((3, 2))),
        ):
            _, out, _ = self.main("predict", "stock_rnn.pt", "few.csv", "--steps=3")
        self.assertEqual(out.split()[::3], ["60", "0.0000002", "123456789000"])

    def test_resume_brings_the_settings_back_and_goes_on_to_more_epochs(self):
        flags = ["--normalise=range", "--cell=gru", "--seed=4", "--batch-size=7"]
        self.train(*flags, "--epochs=8", "--checkpoint=straight.pt")
        report = stock_rnn.save_and_report

        def stop_after_five(*args):
            report(*args)
            if len(args[-1]["history"]["val_loss"]) == 5:
                raise KeyboardInterrupt

        with mock.patch.object(stock_rnn, "save_and_report", stop_after_five):
            status, out, _ = self.main(*self.flags, *flags, "--epochs=8")
        self.assertEqual(status, 130)
        self.assertIn("stopped: all up to the last epoch is saved", out)
        self.assertIn("saved in stock_rnn.pt", self.succeed("resume", "stock_rnn.pt"))
        self.assertEqual(self.contents("stock_rnn.pt"), self.contents("straight.pt"))
        self.refuse("the run is at epoch 8: 7 is too few", "resume", "stock_rnn.pt", "--epochs=7")
        out = self.succeed("resume", "stock_rnn.pt", "--epochs=8")
        self.assertIn("\nthe run has ended at epoch 8\n", out)
        self.succeed("resume", "stock_rnn.pt", "--epochs=10", "--device=cpu")
        _, settings, _, state = load_checkpoint("stock_rnn.pt")
        self.assertEqual((len(state["history"]["val_loss"]), settings.epochs), (10, 10))

    def test_a_run_stopped_before_its_first_epoch_can_be_tested_and_resumed(self):
        with mock.patch.object(stock_rnn, "train", side_effect=KeyboardInterrupt):
            self.assertEqual(self.main(*self.flags)[0], 130)
        out = self.succeed("test", "stock_rnn.pt", "values.csv")
        self.assertEqual(self.table(out)["Theil"][0], "1.0000")
        self.succeed("resume", "stock_rnn.pt")
        self.train("--checkpoint=straight.pt")
        self.assertEqual(self.contents("stock_rnn.pt"), self.contents("straight.pt"))

    def test_resume_takes_another_device(self):
        self.train()
        saved = torch.load("stock_rnn.pt", weights_only=True)
        saved["settings"]["device"] = "nonsense"
        torch.save(saved, "far.pt")
        self.refuse("--device nonsense", "resume", "far.pt")
        self.succeed("resume", "far.pt", "--device=cpu")

    def test_every_flag_of_train_arrives_where_it_belongs(self):
        self.write(
            "days.csv",
            "Date,Close\n"
            + "".join(
                f"{2000 + i // 12}-{1 + i % 12:02},{value}\n" for i, value in enumerate(walk())
            ),
        )
        flags = "--column=Close --order=file --normalise=difference --cell=lstm --hidden-size=6"
        flags += " --seq-length=7 --batch-size=9 --learning-rate=0.5 --val-fraction=0.2 --seed=3"
        flags += " --test-fraction=0.1 --epochs=2 --device=cpu"
        self.succeed("days.csv", *flags.split(), "--checkpoint=mine.pt")
        model, settings, values, state = load_checkpoint("mine.pt")
        self.assertEqual(model.rnn.hidden_size, 6)
        self.assertIsInstance(model.rnn, torch.nn.LSTM)
        kept = " ".join(
            f"--{name.replace('_', '-')}={getattr(settings, name)}"
            for name in ("column", "order", "normalise", "cell", "hidden_size")
        )
        self.assertTrue(flags.startswith(kept), kept)
        self.assertEqual((settings.seq_length, settings.batch_size, settings.epochs), (7, 9, 2))
        self.assertEqual((settings.val_fraction, settings.test_fraction), (0.2, 0.1))
        self.assertEqual((settings.learning_rate, settings.seed), (0.5, 3))
        self.assertEqual(len(state["history"]["val_loss"]), 2)
        self.assertEqual(state["scheduler"]["base_lrs"], [0.5])

    def test_a_seed_repeats_a_run_and_another_gives_another(self):
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            self.train(f"--seed={seed}", f"--checkpoint={name}.pt")
        states = [self.contents(f"{name}.pt")["state"]["model"] for name in "abc"]
        self.assertTrue(states[0] == states[1] != states[2])

    def test_the_order_of_the_file_is_kept_for_test_and_predict(self):
        rows = [f"{2000 + i // 12}-{1 + i % 12:02},{value}\n" for i, value in enumerate(walk())]
        self.write("down.csv", "date,open\n" + "".join(reversed(rows)))
        self.succeed("down.csv", *SMALL, "--order=file")
        _, _, values, _ = load_checkpoint("stock_rnn.pt")
        self.assertEqual(values.tolist(), walk()[::-1].tolist())
        by_file = self.succeed("predict", "stock_rnn.pt", "down.csv")
        self.assertEqual(
            by_file, self.succeed("predict", "stock_rnn.pt", "down.csv", "--order=file")
        )
        by_time = self.succeed("predict", "stock_rnn.pt", "down.csv", "--order=time")
        self.assertNotEqual(by_file, by_time)
        self.assertIn("end where", self.succeed("test", "stock_rnn.pt", "down.csv"))
        self.assertNotIn(
            "end where", self.succeed("test", "stock_rnn.pt", "down.csv", "--order=time")
        )

    def test_the_decimal_sign_of_the_training_is_that_of_test_and_predict_unless_given(self):
        german = "".join(f"{value:.3f};\n" for value in walk(steps=120)).replace(".", ",")
        self.write("german.csv", "open;x\n" + german)
        self.refuse("--decimal . or --decimal , says", "german.csv", *SMALL)
        self.succeed("german.csv", *SMALL, "--decimal=,")
        values = load_checkpoint("stock_rnn.pt")[2]
        np.testing.assert_allclose(values, walk(steps=120), atol=1e-3)
        predicted = self.succeed("predict", "stock_rnn.pt", "german.csv")
        self.assertIn("end where", self.succeed("test", "stock_rnn.pt", "german.csv"))
        self.csv("english.csv", values)
        for command in ("predict", "test"):
            self.refuse("has", command, "stock_rnn.pt", "english.csv")
            self.succeed(command, "stock_rnn.pt", "english.csv", "--decimal=.")
        self.assertEqual(
            self.succeed("predict", "stock_rnn.pt", "english.csv", "--decimal=."), predicted
        )

    def test_help_without_a_command_lists_the_commands(self):
        for flag in ("-h", "--help"):
            status, out, _ = self.main(flag)
            self.assertEqual(status, 0)
            self.assertRegex(out, r"\{train,resume,test,predict\}")

    def test_help_names_the_defaults_that_are_used(self):
        defaults = vars(stock_rnn.parse(["train"]))
        out = self.main("train", "--help")[1]
        found = dict(
            re.findall(
                r"--([a-z-]+) (?:(?!--)[^()])*\((?:in training: )?([\w.]+)\)", " ".join(out.split())
            )
        )
        self.assertGreater(len(found), 12)
        for flag, value in found.items():
            self.assertEqual(value, str(defaults[flag.replace("-", "_")]), flag)
        self.assertEqual(
            (found["hidden-size"], found["epochs"], found["learning-rate"]), ("32", "100", "0.003")
        )

    @unittest.skipUnless(find_spec("matplotlib"), "matplotlib is not installed")
    def test_the_plot_shows_the_test_its_forecast_the_last_value_and_the_hardest_of_the_simple(
        self,
    ):
        from matplotlib.axes import Axes

        self.csv("season.csv", season())
        for name, hardest in (("values.csv", None), ("season.csv", "linear")):
            with mock.patch.object(Axes, "plot", autospec=True, side_effect=Axes.plot) as plot:
                self.succeed(name, *SMALL, f"--plot={name}.png", f"--checkpoint={name}.pt")
            png = Path(f"{name}.png").read_bytes()
            self.assertEqual(png[:8], b"\x89PNG\r\n\x1a\n")
            self.assertEqual([int.from_bytes(png[i : i + 4], "big") for i in (16, 20)], [800, 500])
            self.assertFalse(Path(f"{name}-2.png").exists())  # it is drawn anew, not beside it
            model, _, values, _ = load_checkpoint(f"{name}.pt")
            train_set, _, test_set = split(values, 5)
            errors = errors_of(model, test_set, train_set)
            true = test_set.values[5:]
            sizes = {one: stock_rnn.rms(errors[one]) for one in ("naive", "drift", "linear")}
            hardest = min(sizes, key=sizes.get)
            shown = dict.fromkeys(["naive", hardest])
            lines = plot.call_args_list[-2 - len(shown) :]  # those of the last picture
            expected = [true, true - errors["model"], *(true - errors[one] for one in shown)]
            for line, values in zip(lines, expected):
                np.testing.assert_allclose(line.args[1], values)
            labels = [line.kwargs["label"].split(":")[0] for line in lines]
            self.assertEqual(labels, ["true", "predicted", *shown])
        self.assertEqual(hardest, "linear")
        for ending, start in ((".svg", b"<?xml"), (".pdf", b"%PDF")):
            self.train(f"--plot=a{ending}")
            self.assertTrue(Path(f"a{ending}").read_bytes().startswith(start))
        svg = Path("a.svg").read_text(encoding="utf-8")
        for label in ("true", "predicted", "naive: the last value", "row of the test", "open"):
            self.assertIn(f"<!-- {label}", svg)

    @unittest.skipUnless(find_spec("matplotlib"), "matplotlib is not installed")
    def test_a_plot_that_cannot_be_or_would_cost_a_file_is_refused_before_training(self):
        self.csv("notes.svg", walk(steps=120))
        refused = "is there, and no picture of this run"
        self.refuse(refused, "train", "notes.svg", *SMALL, "--plot=notes.svg")
        self.train("--checkpoint=a.png", "--plot=b.png")
        self.refuse(refused, *self.flags, "--plot=b.png")
        self.refuse(refused, "resume", "a.png", "--plot=a.png")
        Path("elsewhere").mkdir()
        picture = self.write("elsewhere/b.png", "another's")
        self.refuse(refused, "resume", "a.png", f"--plot={picture}")
        self.write("b.png", "to be drawn again")
        self.succeed("resume", "a.png", "--plot=b.png", "--epochs=4")
        self.assertEqual(Path("b.png").read_bytes()[:4], b"\x89PNG")
        self.refuse("nowhere/a.png", *self.flags, "--plot=nowhere/a.png")

    def test_a_plot_of_another_ending_or_without_matplotlib_is_refused(self):
        self.refuse("must end in .png, .svg or .pdf", *self.flags, "--plot=thesis.txt")
        with mock.patch.dict(sys.modules, {"matplotlib.figure": None}):
            self.refuse("pip install matplotlib", *self.flags, "--plot=a.png")

    def test_every_mistake_is_told_in_a_line_and_changes_nothing(self):
        self.csv("short.csv", [1, 2, 3])
        self.csv("flat.csv", [5] * 120)
        self.csv("bad.csv", [5, "6%"])
        self.csv("below.csv", [*walk(steps=119), -3])
        self.train()
        for saying, *commands in (
            ("none.csv", "train none.csv", "test stock_rnn.pt none.csv"),
            ("none.pt", "resume none.pt", "predict none.pt values.csv"),
            ("directory", "train .", "test . values.csv"),
            (
                "name one with --column",
                "--column=close",
                f"train {CO2}",
                f"test stock_rnn.pt {CO2}",
            ),
            ("line 3", "train bad.csv"),
            ("18 to validate and 0 to test", "--test-fraction=0"),
            ("window of 5", "predict stock_rnn.pt short.csv", "test stock_rnn.pt short.csv"),
            ("alike", "train flat.csv"),
            (
                "train with --normalise difference",
                "train below.csv",
                "predict stock_rnn.pt below.csv",
            ),
            ("invalid choice", "--order=newest", "--decimal=;", "--normalise=foo", "--cell=cnn"),
            ("argument", "--hidden-size=ten", "--hiden-size=3", "test"),
            ("argument", "predict stock_rnn.pt", "resume stock_rnn.pt --seed=1", "resume"),
            ("whole number from 1", "--hidden-size=0", f"--epochs={10**400}", "--batch-size=0"),
            ("whole number from 1", "--seq-length=1000000001", "--epochs=1.5"),
            ("whole number from 1", "predict stock_rnn.pt values.csv --steps=0"),
            ("whole number from 0", "--seed=x", f"--seed={10**20}", "--seed=-1"),
            ("positive number", "--learning-rate=nan", "--learning-rate=0"),
            ("leave nothing to train on", "--val-fraction=-inf", "--test-fraction=nan"),
            ("than 200, 1 and 1 are needed for --seq-length 100", "--seq-length=100"),
            ("0 to validate and 18 to test", "--val-fraction=0"),
            ("-12 to test", "--test-fraction=-0.1"),
            ("--device nonsense", "--device=nonsense"),
            ("--device meta", "--device=meta"),
            ("CUDA", *["--device=cuda"] * (not torch.cuda.is_available())),
            ("nowhere", "--checkpoint=nowhere/stock_rnn.pt"),
            ("damaged", "test values.csv values.csv", "resume short.csv"),
        ):
            for command in commands:
                with self.subTest(command):
                    self.refuse(saying, *self.flags * command.startswith("-"), *command.split())

    def test_a_learning_rate_that_diverges_is_told(self):
        before = self.files()
        status, _, err = self.main(*self.flags, "--learning-rate=1000000", "--normalise=range")
        if status:  # the weights may stay finite
            self.assertEqual(status, 2)
            self.assertIn("try a lower learning rate", err)
        self.assertEqual(before.items() - self.files().items(), set())

    def test_python_snippets_about_stock_rnn_run_as_written(self):
        readme = (HERE / "README.md").read_text(encoding="utf-8")
        snippets = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
        Path("data").symlink_to(HERE / "data")
        self.assertIn("stock_rnn", "".join(snippets))
        for snippet in filter(re.compile("stock_rnn").search, snippets):
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                exec(snippet, {})


class TestCheckpoint(InFolder):
    def setUp(self):
        super().setUp()
        self.train()

    def values(self, path):
        model, settings, values, state = load_checkpoint(path)
        data = StockDataset(values, 5)
        return vars(settings), values.tolist(), plain(state), forecast(model, data, 2).tolist()

    def test_save_checkpoint_in_python_takes_a_free_name_unless_it_may_replace(self):
        _, settings, values, state = load_checkpoint("stock_rnn.pt")
        names = [
            stock_rnn.save_checkpoint("mine.pt", settings, values, state, **options)
            for options in ({}, {}, {"replace": True})
        ]
        self.assertEqual(names, ["mine.pt", "mine-2.pt", "mine.pt"])

    def test_a_damaged_checkpoint_is_refused_or_gives_the_very_same_values(self):
        whole = Path("stock_rnn.pt").read_bytes()
        same = self.values("stock_rnn.pt")
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
                self.assertEqual(self.values(self.write("damaged.pt", content)), same)
            except UserError as error:
                self.assertIn("damaged.pt is damaged", str(error))
                refused += 1
        self.assertGreater(refused, 150)

    def test_a_bit_of_the_directory_that_torch_does_not_look_at_is_seen(self):
        whole = Path("stock_rnn.pt").read_bytes()
        entry = whole.index(b"PK\1\2")  # the first of the directory: its external attributes
        changed = whole[: entry + 38] + b"\x10" + whole[entry + 39 :]
        self.refuse("is damaged", "resume", self.write("damaged.pt", changed))

    def test_forged_checkpoints_are_refused_and_nothing_in_one_is_run(self):
        whole = torch.load("stock_rnn.pt", weights_only=True)
        weights = RNN(5).state_dict()
        forged = [[], weights]
        for content in [*forged, whole | {"state": Trap()}]:
            torch.save(content, "forged.pt")
            for args in (["predict", "forged.pt", "values.csv"], ["resume", "forged.pt"]):
                self.refuse("forged.pt is damaged", *args)
        torch.load("forged.pt", weights_only=False)  # the trap does work where pickles are allowed
        self.assertTrue(Path("witness").exists())

    def test_a_checkpoint_of_an_earlier_version_is_refused_as_such(self):
        saved = torch.load("stock_rnn.pt", weights_only=True)
        saved["version"] = 0
        torch.save(saved, "old.pt")
        self.refuse("old.pt is damaged, or no checkpoint of stock_rnn.py", "resume", "old.pt")


class Trap:
    """What a forged pickle can do: it creates a file when it is loaded."""

    def __reduce__(self):
        return (Path.touch, (Path("witness"),))


if find_spec("torch"):

    class Own(torch.nn.LSTM):
        """A network of a user's own, with dropout, that notes when it is in training mode."""

        modes = []

        def forward(self, x):
            self.modes.append(self.training)
            return torch.dropout(super().forward(x)[0][:, -1], 0.5, self.training)


if __name__ == "__main__":
    unittest.main()

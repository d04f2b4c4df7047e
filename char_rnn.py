# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=1.26"]
# ///
# SPDX-License-Identifier: MIT-0
"""A character-level recurrent neural network, from scratch in NumPy.

    python char_rnn.py                              learn to write fables, in a quarter of a minute
    python char_rnn.py train my.txt                 learn from your own text
    python char_rnn.py sample char_rnn.npz          write new text with what was learned
    python char_rnn.py test char_rnn.npz other.txt  measure how well it predicts another text

One hidden layer reads a text character by character (x_t) and says how likely each next one is (y_t):

    a_t = tanh(n_t)       n_t = Waa a_{t-1} + Wax x_t + ba
    y_t = softmax(z_t)    z_t = Wya a_t + by
    L   = - sum over t of log y_t[target_t]

Shapes, everywhere below: T steps, B streams read side by side, H hidden units, V distinct characters.
"""

import argparse
import io
import json
import math
import os
import re
import shlex
import signal
import sys
import time
import zipfile
import zlib
from pathlib import Path

# One thread: on a busy machine, threads that wait for each other are 10 to 50 times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

np.empty(31 << 20, np.uint8)  # makes Linux keep freed memory for the next arrays: up to 1.9x faster

# ------------------------------------------------------------------------------------------------------------
# Data: from a text file to batches of character indices


class DataReader:
    """Reads a UTF-8 text and deals it out as batches of character indices.

    chars are the V distinct characters, sorted. The last val_fraction of the text is held out in val_ids
    (none if the text is too short). The rest is cut into batch_size stretches of equal length, the
    streams; all are read at the same time, each from its start to its end, seq_length characters a batch.
    Raises ValueError for a text that is not UTF-8, has fewer than 2 distinct characters, or is too short.
    """

    def __init__(self, path, seq_length, batch_size=1, val_fraction=0.1):
        if min(seq_length, batch_size) < 1:
            raise ValueError(f"seq_length {seq_length} and batch_size {batch_size} must be at least 1")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction must be at least 0 and less than 1, not {val_fraction}")
        text = read_text(path)
        self.chars = sorted(set(text))
        self.vocab_size = len(self.chars)
        if self.vocab_size < 2:
            raise ValueError(f"{path} has {self.vocab_size} distinct characters: at least 2 are needed")
        needed, fits = batch_size * seq_length + 1, (len(text) - 1) // seq_length
        if len(text) < needed:
            remedy = f"--batch-size {fits}" if fits else f"--batch-size 1 --seq-length {len(text) - 1}"
            raise ValueError(f"{path} has {len(text)} characters, but {needed} are needed: try {remedy}")
        ids = encode(text, self.chars)
        self.checksum = zlib.crc32(ids, zlib.crc32("".join(self.chars).encode()))  # to know the text again
        held_out = int(len(ids) * val_fraction)
        if held_out < 2 or len(ids) - held_out < needed:
            held_out = 0
        self.train_ids, self.val_ids = ids[: len(ids) - held_out], ids[len(ids) - held_out :]
        self.seq_length, self.batch_size, self.position = seq_length, batch_size, 0
        self.inputs, self.targets = side_by_side(self.train_ids, batch_size, seq_length)

    def just_started(self):
        """True when the next batch is the first of a pass over the text, where the hidden state is zero."""
        return self.position == 0

    def next_batch(self):
        """The next (inputs, targets), each (T, B): the targets are the inputs shifted by one character."""
        steps = slice(self.position, self.position + self.seq_length)
        self.position = (self.position + self.seq_length) % len(self.inputs)
        return self.inputs[steps].astype(np.intp), self.targets[steps].astype(np.intp)


def read_text(path):
    """The text of a UTF-8 file; a byte-order mark is dropped, and line ends of any system become newlines."""
    try:
        with open(0 if path == "-" else path, encoding="utf-8-sig") as file:  # 0 is standard input
            return file.read()
    except UnicodeDecodeError as error:
        utf_16 = error.object.startswith((b"\xff\xfe", b"\xfe\xff"))
        found = "it looks like UTF-16" if utf_16 else f"see line {error.object.count(10, 0, error.start) + 1}"
        raise ValueError(f"{path} is not UTF-8 text ({found}): save it as UTF-8") from None


def encode(text, chars):
    """The characters of a text as an array of indices into chars; ValueError names those not in chars."""
    index = np.full(sys.maxunicode + 1, len(chars), np.min_scalar_type(len(chars)))  # one for each code point
    index[[ord(char) for char in chars]] = np.arange(len(chars))  # len(chars) stays where a char is unknown
    ids, size = np.empty(len(text), index.dtype), 1 << 20
    for start in range(0, len(text), size):  # in pieces, because UTF-32 takes four bytes a character
        code_points = np.frombuffer(text[start : start + size].encode("utf-32-le"), np.uint32)
        ids[start : start + size] = index[code_points]
    if ids.max(initial=0) == len(chars):
        raise ValueError(f"the model never saw {' '.join(map(repr, sorted(set(text) - set(chars))))}")
    return ids


def side_by_side(ids, streams, seq_length=1):
    """Inputs and targets, each (steps, streams): a text in equal stretches, and the same shifted by one."""
    steps = (len(ids) - 1) // (streams * seq_length) * seq_length  # whole batches only: the rest is dropped
    inputs, targets = ids[: streams * steps], ids[1 : streams * steps + 1]
    return inputs.reshape(streams, steps).T, targets.reshape(streams, steps).T  # a column is a stream


# ------------------------------------------------------------------------------------------------------------
# Mathematics: softmax, three optimisers, and the network with its training


def softmax(x, axis=-1):
    """exp(x_i) / sum over j of exp(x_j) along an axis; the maximum is subtracted first, against overflow."""
    x = np.asarray(x) * 1.0  # lists and integers become an array of floats
    exp = np.exp(x - x.max(axis=axis, keepdims=True))
    return exp / exp.sum(axis=axis, keepdims=True)


def adam(g, m, v, t, learning_rate, beta1=0.9, beta2=0.999, epsilon=1e-8):
    """The t-th step of Adam for gradient g, and the two moments after it (Kingma and Ba, 2015)."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat = m / (1 - beta1**t)  # both moments started at zero: this corrects for it
    v_hat = v / (1 - beta2**t)
    return learning_rate * m_hat / (np.sqrt(v_hat) + epsilon), m, v


def adagrad(g, m, v, t, learning_rate, epsilon=1e-10):
    """A step of Adagrad (Duchi, Hazan and Singer, 2011); v is the sum of all squared gradients so far."""
    v = v + g**2
    return learning_rate * g / (np.sqrt(v) + epsilon), m, v


def sgd(g, m, v, t, learning_rate):
    """A step of stochastic gradient descent, which does not use m, v and t."""
    return learning_rate * g, m, v


OPTIMIZERS = {"adam": adam, "adagrad": adagrad, "sgd": sgd}
PARAMETERS = ("Wax", "Waa", "Wya", "ba", "by")
NUMBERS = ("iteration", "seconds", "smooth_loss", "best_loss")
HEADER = "iteration   smooth  train  valid   left  sample"


class RNN:
    """A one-layer tanh RNN with a softmax over the next character, trained by backpropagation through time.

    Parameters: Wax (H, V), Waa (H, H), Wya (V, H), ba (H,), by (V,). After training, losses has the loss of
    every iteration, history a row [iteration, seconds, training loss, validation loss] for every report, in
    nats per character, and best a copy of the parameters with the lowest validation loss, best_loss.
    Take dtype=np.float64 to check gradients. Raises ValueError for invalid sizes, rates and names.
    """

    def __init__(
        self, hidden_size, vocab_size, seq_length, learning_rate, optimizer="adam", seed=0, dtype=np.float32
    ):
        if min(hidden_size, vocab_size, seq_length) < 1:
            raise ValueError(f"sizes must be at least 1, not {hidden_size}, {vocab_size}, {seq_length}")
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a positive number, not {learning_rate}")
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, not {optimizer}")
        self.hidden_size, self.vocab_size = H, V = hidden_size, vocab_size
        self.seq_length, self.learning_rate = seq_length, learning_rate
        self.optimizer, self.dtype = optimizer, np.dtype(dtype)

        # Waa is orthogonal, the Q of QR: it keeps the length of a. Wya / sqrt(H): z has variance 1 at most.
        rng = np.random.default_rng(seed)
        self.Wax = rng.standard_normal((H, V)).astype(dtype)
        self.Waa = np.linalg.qr(rng.standard_normal((H, H)))[0].astype(dtype)
        self.Wya = (rng.standard_normal((V, H)) / math.sqrt(H)).astype(dtype)
        self.ba = np.zeros(H, dtype)
        self.by = np.zeros(V, dtype)
        self.m = {name: np.zeros_like(w) for name, w in self.parameters().items()}  # the optimiser's moments
        self.v = {name: np.zeros_like(w) for name, w in self.parameters().items()}
        self.a_prev = np.zeros((0, H), dtype)  # no stream has been read yet
        self.iteration, self.seconds = 0, 0.0
        self.guessing = math.log(V)  # the loss when all characters are equally likely
        self.smooth_loss = seq_length * self.guessing
        self.losses, self.history, self.best, self.best_loss = [], [], {}, math.inf

    def parameters(self):
        """A dict of the five parameters by name: the arrays themselves, not copies."""
        return {name: getattr(self, name) for name in PARAMETERS}

    def forward(self, inputs, a_prev):
        """The hidden states and the probabilities of the next character, at every step.

            a_t = tanh(Waa a_{t-1} + Wax x_t + ba)        y_t = softmax(Wya a_t + by)

        inputs (T, B) are character indices, a_prev is (B, H); returns a (T+1, B, H), where a[0] = a_prev, and
        y_pred (T, B, V). A single sequence, (T,) with (H,), works the same without the B axis.
        """
        inputs = np.asarray(inputs, np.intp)
        a = np.empty((len(inputs) + 1, *inputs.shape[1:], self.hidden_size), self.dtype)
        a[0] = a_prev
        from_x = (self.Wax.T + self.ba).take(inputs, axis=0)  # x_t is one-hot: Wax x_t is a column of Wax
        Waa_T = self.Waa.T  # each row of a[t] is the a of one stream: hence the transpose; dot is a fast @
        for t in range(len(inputs)):
            np.tanh(a[t].dot(Waa_T) + from_x[t], out=a[t + 1])
        z = a[1:].reshape(-1, self.hidden_size) @ self.Wya.T + self.by
        return a, softmax(z).reshape(*inputs.shape, self.vocab_size)

    def loss(self, y_pred, targets):
        """The cross-entropy L = - sum over t of log y_t[target_t], in nats; the mean over streams."""
        streams, ixs = np.size(targets[0]), np.ravel(targets)
        y_target = np.reshape(y_pred, (-1, self.vocab_size))[np.arange(len(ixs)), ixs]  # row i, column ixs[i]
        smallest = np.finfo(self.dtype).tiny  # so that log never meets a probability rounded to 0
        return float(-np.log(np.maximum(y_target, smallest)).sum()) / streams

    def backward(self, inputs, a, y_pred, targets):
        """The gradients of loss by backpropagation through time: a dict with one array per parameter.

            dz_t = (y_t - onehot(target_t)) / B           -1/y_t[target_t] times the slope of the softmax
            da_t = Wya' dz_t + Waa' dn_{t+1}              from this step's output and from the step after
            dn_t = (1 - a_t^2) da_t                       through the tanh
            dWya = sum dz_t a_t'      dby = sum dz_t
            dWax = sum dn_t x_t'      dba = sum dn_t      dWaa = sum dn_t a_{t-1}'

        dx means dL/dx, ' is the transpose, and a_t = tanh(n_t). Only dn_t needs a loop, from the last step to
        the first; each sum over steps and streams is one matrix product.
        """
        a, H, streams = np.asarray(a), self.hidden_size, np.size(targets[0])
        dz = (np.reshape(y_pred, (-1, self.vocab_size)) - self.one_hot(targets)) / streams
        from_z = (dz @ self.Wya).reshape(a[1:].shape)
        slope = 1 - a[1:] ** 2
        dn = np.zeros(a.shape, self.dtype)  # one step longer: after the last step it is 0
        for t in reversed(range(len(slope))):
            np.multiply(dn[t + 1].dot(self.Waa) + from_z[t], slope[t], out=dn[t])

        dn, a_before, a_now = dn[:-1].reshape(-1, H), a[:-1].reshape(-1, H), a[1:].reshape(-1, H)  # (T B, H)
        return {
            "Wax": dn.T @ self.one_hot(inputs),
            "Waa": dn.T @ a_before,
            "Wya": dz.T @ a_now,
            "ba": dn.sum(axis=0),
            "by": dz.sum(axis=0),
        }

    def one_hot(self, indices):
        """A row for each index, with a 1 in that column and 0 elsewhere: (T B, V)."""
        rows = np.zeros((np.size(indices), self.vocab_size), self.dtype)
        rows[np.arange(len(rows)), np.ravel(indices)] = 1
        return rows

    def update(self, grads, scale=1.0):
        """One step of the optimiser at learning_rate * scale; each gradient is clipped to [-5, 5]."""
        self.iteration += 1
        rule, rate = OPTIMIZERS[self.optimizer], self.learning_rate * scale
        for name, parameter in self.parameters().items():
            g = grads[name].clip(-5, 5)  # against exploding gradients
            step, self.m[name], self.v[name] = rule(g, self.m[name], self.v[name], self.iteration, rate)
            parameter -= step  # in place: this changes self.Wax and so on

    def schedule(self, max_iters):
        """The share of learning_rate for the next update: a linear warm-up to 1, then a cosine decay to 0."""
        warm_up = (self.iteration + 1) / min(100, max_iters / 10)
        return min(1, warm_up) * (1 + math.cos(math.pi * self.iteration / max_iters)) / 2

    def ended(self, max_iters, threshold):
        """True after max_iters iterations in all, or when the smooth loss has fallen to threshold."""
        return self.iteration >= max_iters or self.smooth_loss <= threshold

    @np.errstate(over="ignore", invalid="ignore")  # train itself reports a loss that is not finite
    def train(self, data_reader, max_iters=2500, threshold=0.0, report=None):
        """The hand-out's nine steps; returns the loss of every iteration so far, summed over steps.

        At iteration 0, at every 500th and at the last it validates, and calls report(self), which by default
        prints a row with a sample. At the end it takes the parameters that were best on validation.
        Raises ValueError if the reader does not fit the model, and if the loss is not finite.
        """
        sizes, expected = (data_reader.vocab_size, data_reader.seq_length), (self.vocab_size, self.seq_length)
        if sizes != expected:
            raise ValueError(f"the reader has (vocab_size, seq_length) {sizes}, the model {expected}")
        report = report or (lambda rnn: print_row(rnn, data_reader, max_iters))
        zeros = np.zeros((data_reader.batch_size, self.hidden_size), self.dtype)
        if self.a_prev.shape != zeros.shape:
            self.a_prev = zeros
        data_reader.position = self.iteration * self.seq_length % len(data_reader.inputs)  # where it was
        started = time.perf_counter() - self.seconds
        if self.ended(max_iters, threshold):
            print(
                f"already at {self.iteration} of {max_iters} iterations, smooth loss {self.smooth_loss:.1f}"
            )
        elif not self.history:
            self.validate(data_reader.val_ids)
            report(self)
        while not self.ended(max_iters, threshold):  # step 9: repeat
            if data_reader.just_started():  # step 1
                self.a_prev = zeros
            inputs, targets = data_reader.next_batch()  # step 2
            a, y_pred = self.forward(inputs, self.a_prev)  # step 3
            loss = self.loss(y_pred, targets)
            if not math.isfinite(loss):
                found = f"the loss is {loss} at iteration {self.iteration + 1}"
                raise ValueError(f"{found}: try a learning rate below {self.learning_rate:g}")
            grads = self.backward(inputs, a, y_pred, targets)  # step 4
            self.update(grads, self.schedule(max_iters))  # step 5, by Adam
            self.losses.append(loss)  # step 6: the loss of step 3
            self.smooth_loss += 0.01 * (loss - self.smooth_loss)
            self.a_prev = a[-1]  # step 7
            if self.iteration % 500 == 0 or self.ended(max_iters, threshold):  # step 8
                self.seconds = time.perf_counter() - started
                self.validate(data_reader.val_ids)
                report(self)
        self.use_best()
        return self.losses

    def validate(self, val_ids):
        """Add a row to history, and copy the parameters when they are the best so far on validation."""
        recent = self.losses[self.history[-1][0] :] if self.history else []
        train_loss = sum(recent) / len(recent) / self.seq_length if recent else math.nan
        val_loss = self.evaluate(val_ids[:131_072]) if len(val_ids) else math.nan
        self.history.append([self.iteration, self.seconds, train_loss, val_loss])
        if self.iteration and val_loss < self.best_loss:
            self.best, self.best_loss = {name: w.copy() for name, w in self.parameters().items()}, val_loss

    def use_best(self):
        """Replace the parameters by those that were best on validation, if any."""
        for name, parameter in self.best.items():
            setattr(self, name, parameter.copy())

    def evaluate(self, ids):
        """The mean loss per character, in nats, of a text given as indices; ValueError for fewer than 2.
        A long text is read as up to 64 streams of at least 2000 characters; each starts from a zero state.
        """
        if len(ids) < 2:
            raise ValueError(f"a text of {len(ids)} characters has nothing to predict: at least 2 are needed")
        streams = min(64, max(1, len(ids) // 2000))
        inputs, targets = side_by_side(np.asarray(ids), streams)
        nats, a_prev = 0.0, np.zeros((streams, self.hidden_size), self.dtype)
        for start in range(0, len(inputs), 100):  # piece by piece, to save memory
            a, y_pred = self.forward(inputs[start : start + 100], a_prev)
            nats += self.loss(y_pred, targets[start : start + 100])  # summed over steps, the mean of streams
            a_prev = a[-1]
        return nats / len(inputs)

    def sample(self, a_prev, seed_ix, n, temperature=1.0, seed=None):
        """n character indices, each drawn from softmax(z_t / temperature) and then fed back as the next x_t.
        The first input is seed_ix, with hidden state a_prev (H,). Temperature 0 takes the likeliest
        character; a seed gives the same ones each time. Raises ValueError for n or temperature below 0.
        """
        if n < 0 or not 0 <= temperature < math.inf:
            raise ValueError(f"n {n} and temperature {temperature} must be at least 0")
        rng, ixs = np.random.default_rng(seed), [int(np.ravel(seed_ix)[0])]  # a number or an array of one
        a_prev = np.reshape(a_prev, self.hidden_size)
        for _ in range(n):
            a, y_pred = self.forward(ixs[-1:], a_prev)
            a_prev = a[-1]
            log_y = np.log(np.maximum(y_pred[-1].astype(np.float64), 1e-300))  # z_t minus a constant
            p = softmax(log_y / max(temperature, 1e-300))  # near 0, only the likeliest keeps p > 0
            ixs.append(int(rng.choice(self.vocab_size, p=p)))
        return ixs[1:]

    def predict(self, data_reader, start, n, temperature=1.0, seed=None):
        """The text start, all of which is read first, and n new characters; all are in data_reader.chars."""
        if not start:
            raise ValueError("the start text is empty: at least 1 character is needed")
        ids, chars = encode(start, data_reader.chars), data_reader.chars
        a, _ = self.forward(ids[:-1], np.zeros(self.hidden_size))
        return start + "".join(chars[ix] for ix in self.sample(a[-1], ids[-1], n, temperature, seed))


def print_row(rnn, data_reader, max_iters):
    """Print the last row of history, the time left and a short sample; every 10,000 iterations a long one."""
    iteration, seconds, train_loss, val_loss = rnn.history[-1]
    row = f"{iteration:>9,}{rnn.smooth_loss:>9.2f}{train_loss:>7.3f}{val_loss:>7.3f}".replace("nan", "  -")
    earlier, then = rnn.history[-2][:2] if iteration else (-1, 0)
    to_go = int((seconds - then) / (iteration - earlier) * (max_iters - iteration))
    left = f"{to_go // 60}:{to_go % 60:02}" if iteration else "-"
    if iteration == 0:
        print(HEADER)
    text = rnn.predict(data_reader, data_reader.chars[0], 300, temperature=0.7, seed=0)[1:]
    sample = "".join(char if char.isprintable() else " " for char in text[:38])
    print(f"{row}{left:>7}  {sample}", flush=True)
    if iteration and iteration % 10_000 == 0:
        print(f"\n{text}\n", flush=True)


# ------------------------------------------------------------------------------------------------------------
# Checkpoints: all that sampling and an exact resume need, in one .npz file


def write_whole(path, data, keep_old=False, trial=False):
    """Write bytes to path whole or not at all: a temporary file beside it, fsync, and a rename; a trial ends
    before the rename. With keep_old, a file that was there becomes path.old."""
    path = os.path.realpath(path)  # a link stays a link
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} cannot be written: it is a folder or a device")
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if keep_old and not trial and os.path.exists(path):
            os.replace(path, f"{path}.old")
        if not trial:
            os.replace(temporary, path)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def arrays_of(rnn):
    """All arrays of a model by their names in a checkpoint: Wax are the best parameters, last_Wax those that
    training goes on from, m_Wax and v_Wax their moments, and so on."""
    groups = {"": rnn.best or rnn.parameters(), "last_": rnn.parameters(), "m_": rnn.m, "v_": rnn.v}
    arrays = {prefix + name: group[name] for prefix, group in groups.items() for name in PARAMETERS}
    history = np.array(rnn.history, np.float64).reshape(-1, 4)
    return arrays | {"a_prev": rnn.a_prev, "losses": np.array(rnn.losses, np.float64), "history": history}


def save_checkpoint(path, rnn, data_reader, settings=None, keep_old=False, trial=False):
    """Save a model, the characters and the checksum of its text, and the settings (a dict) of its run."""
    about = {"chars": data_reader.chars, "checksum": data_reader.checksum, "settings": settings or {}}
    about["model"] = [rnn.seq_length, rnn.learning_rate, rnn.optimizer, rnn.dtype.name]
    about |= {name: getattr(rnn, name) for name in NUMBERS}
    np.savez(file := io.BytesIO(), about=np.array(json.dumps(about)), **arrays_of(rnn))
    write_whole(path, file.getvalue(), keep_old, trial)


def load_checkpoint(path):
    """A model as training left it (use_best() before sampling), and its chars, checksum and settings.

    Nothing in the file is executed. Raises ValueError for a file that is damaged or of another kind.
    """
    data = Path(path).read_bytes()
    try:
        if damaged := zipfile.ZipFile(io.BytesIO(data)).testzip():  # np.load does not check the CRCs
            raise ValueError(f"{damaged} is damaged")
        arrays = dict(np.load(io.BytesIO(data), allow_pickle=False))
        about = argparse.Namespace(**json.loads(str(arrays.pop("about"))))
        rnn = RNN(*arrays["Wax"].shape, *about.model[:3], dtype=about.model[3])
        expected = {}
        for name, array in arrays_of(rnn).items():  # an array empty in a new model can be any length
            shape = array.shape if array.size else (len(arrays[name]), *array.shape[1:])
            expected[name] = shape, array.dtype
        found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
        if found != expected or len("".join(about.chars)) != rnn.vocab_size:
            raise ValueError("its arrays or characters do not fit a model")
        about.settings, about.checksum = dict(about.settings), int(about.checksum)
        for name in NUMBERS:
            setattr(rnn, name, type(getattr(rnn, name))(getattr(about, name)))  # int or float
        for name in PARAMETERS:
            setattr(rnn, name, arrays[f"last_{name}"])
            rnn.m[name], rnn.v[name] = arrays[f"m_{name}"], arrays[f"v_{name}"]
        if rnn.best_loss < math.inf:  # it was validated
            rnn.best = {name: arrays[name] for name in PARAMETERS}
        rnn.a_prev, rnn.losses = arrays["a_prev"], arrays["losses"].tolist()
        rnn.history = [[int(row[0]), *row[1:]] for row in arrays["history"].tolist()]
    except Exception as error:  # damaged bytes can raise almost anything
        raise ValueError(f"{path} is damaged, or no checkpoint of char_rnn.py: {error}") from None
    return rnn, about


# ------------------------------------------------------------------------------------------------------------
# Command line

DATA = str(Path(__file__).with_name("data") / "fables.txt")
SETTINGS = ("hidden_size", "seq_length", "batch_size", "learning_rate", "optimizer", "val_fraction", "seed")
SETTINGS += ("max_iters", "threshold")  # how long to train: --resume may change these two


def train_command(args, rnn, about):
    """Train on a text; from iteration 500 on, every row also saves a checkpoint, a log and a picture."""
    files = [args.text, args.checkpoint, f"{args.checkpoint}.old", *filter(None, (args.log, args.plot))]
    if len(set(map(os.path.realpath, files))) < len(files):
        raise ValueError(f"each of these must be a file of its own: {', '.join(files)}")
    reader = DataReader(args.text, args.seq_length, args.batch_size, args.val_fraction)
    if not about:
        sizes = args.hidden_size, reader.vocab_size, args.seq_length
        rnn = RNN(*sizes, args.learning_rate, args.optimizer, args.seed)
    elif about.checksum != reader.checksum:
        raise ValueError(f"{args.checkpoint} was trained on another text than {args.text}")
    finished = rnn.ended(args.max_iters, args.threshold)
    if finished and not about:
        raise ValueError(f"nothing to train: max_iters {args.max_iters}, threshold {args.threshold}")
    size = sum(array.size for array in rnn.parameters().values())
    title = f"{Path(args.text).name}, {rnn.hidden_size} hidden units, {size:,} parameters"
    fresh, old = not about, not about and os.path.exists(args.checkpoint)

    def save(trial=False):
        nonlocal fresh
        settings = {name: getattr(args, name) for name in SETTINGS}
        save_checkpoint(args.checkpoint, rnn, reader, settings, keep_old=fresh, trial=trial)
        if args.log:  # a field is empty where a loss was not measured
            rows = [",".join(map(str, row)).replace("nan", "") for row in rnn.history]
            log = "\n".join(["iteration,seconds,train_nats,val_nats", *rows, ""])
            write_whole(args.log, log.encode(), trial=trial)
        if args.plot:
            write_whole(args.plot, picture_of(rnn, title, Path(args.plot).suffix), trial=trial)
        fresh = fresh and trial

    def report(rnn):
        print_row(rnn, reader, args.max_iters)
        if rnn.iteration:
            save()

    save(trial=not finished)  # a file that cannot be written fails now, before training
    print(f"{title}\n{len(reader.train_ids):,} characters to train on, {len(reader.val_ids):,} to validate")
    print(f"losses are in nats per character; guessing among {rnn.vocab_size} costs {rnn.guessing:.3f}\n")
    if about and not finished:
        print(HEADER)
    try:
        rnn.train(reader, args.max_iters, args.threshold, report)
    except KeyboardInterrupt:
        again = sys.argv if fresh or args.resume else [*sys.argv, "--resume"]
        print(f"\nstopped; to {'start again' if fresh else 'go on'}:  python {shlex.join(again)}")
        raise
    print_result(rnn)
    print(f"\n{rnn.predict(reader, reader.chars[0], 300, temperature=0.7, seed=0)[1:]}\n")
    print(f"saved in {args.checkpoint}{f'; the one before is {args.checkpoint}.old' if old else ''}")
    more = [sys.argv[0], "sample", args.checkpoint, "--length", "1000", "--temperature", "0.7"]
    print(f"for more text:  python {shlex.join(more)}")


def print_result(rnn):
    """Print the best validation loss, if there is one, and a warning if the run went badly."""
    if rnn.best:
        first, last, best = rnn.history[0], rnn.history[-1], min(rnn.history[1:], key=lambda row: row[3])
        print(f"\nvalidation loss {best[3]:.4f} nats per character (perplexity {math.exp(best[3]):.2f})")
        print(f"after iteration {best[0]:,}, the best of the run: its parameters are kept")
        if last[3] > 1.01 * best[3] and last[2] < best[2] < rnn.guessing:
            print(f"then it rose to {last[3]:.3f}, which is overfitting: try fewer iterations, or more text")
        elif last[3] > max(rnn.guessing, first[3]):
            print("it ended worse than guessing: the learning rate is too high, or the text too short")


def picture_of(rnn, title, suffix):
    """The losses over the iterations as the bytes of a picture; suffix, say .png, gives its format."""
    from matplotlib.figure import Figure

    losses, history = np.array(rnn.losses) / rnn.seq_length, np.array(rnn.history).reshape(-1, 4)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.arange(len(losses)) + 1, losses, "C0", alpha=0.3, linewidth=0.5, label="training")
    if len(losses) >= 50:
        mean = np.convolve(losses, np.ones(50) / 50, "valid")
        axes.plot(np.arange(len(mean)) + 25, mean, "C0", label="training, mean over 50")
    if rnn.best:
        axes.plot(history[1:, 0], history[1:, 3], "C1o-", label="validation")
        best = history[1:][history[1:, 3].argmin()]
        axes.plot(best[0], best[3], "C3*", markersize=14, label=f"best: {best[3]:.3f}")
    axes.axhline(rnn.guessing, color="grey", linestyle=":", label="guessing")
    axes.set(title=title, xlabel="iteration", ylabel="loss (nats per character)")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(picture := io.BytesIO(), format=suffix[1:] or "png")
    return picture.getvalue()


def sample_command(args, rnn, about):
    """Print the start text and the model's continuation."""
    start = about.chars[0] if args.start is None else args.start
    start = read_text(args.start_file) if args.start_file else start
    print(rnn.predict(about, start, args.length, args.temperature, args.seed))


def test_command(args, rnn, about):
    """Print how well a model predicts a text; --show colours its start, or lists the words that cost most."""
    text = read_text(args.text)
    if unknown := set(text) - set(about.chars):
        print(f"left out, since the model never saw them: {' '.join(map(repr, sorted(unknown)))}")
        text = "".join(char for char in text if char not in unknown)
    ids = encode(text, about.chars)
    for name, nats in (("the model", rnn.evaluate(ids)), ("guessing", rnn.guessing)):
        bits = nats / math.log(2)
        print(f"{name}: {nats:.4f} nats ({bits:.4f} bits) per character, perplexity {math.exp(nats):.2f}")
    if args.show:
        _, y_pred = rnn.forward(ids[: args.show], np.zeros(rnn.hidden_size))
        nats = [rnn.loss(y, [ix]) for y, ix in zip(y_pred, ids[1:])]
        if sys.stdout.isatty():
            reds = ["", *(f"\033[97;48;5;{red}m" for red in (52, 88, 124, 160, 196))]
            print("nats:", *(f"{red} {cost} \033[0m" for cost, red in enumerate(reds)), "or more")
            print("".join(f"{reds[min(int(cost), 5)]}{char}\033[0m" for char, cost in zip(text[1:], nats)))
        else:
            words = re.finditer(r"\S+", text[1 : len(nats) + 1])
            costs = [(sum(nats[word.start() : word.end()]), word[0]) for word in words]
            for cost, word in sorted(costs, reverse=True)[:10]:
                print(f"{cost:8.2f} nats  {word}")


def parse(argv):
    """The arguments, and what load_checkpoint returns, or None twice if no checkpoint is read."""
    parser = argparse.ArgumentParser(prog="char_rnn.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(title="commands", required=True)
    formatter = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter}
    train = commands.add_parser("train", help="learn from a text (also without a command)", **formatter)
    train.set_defaults(run=train_command)
    train.add_argument("text", nargs="?", default=DATA, help="UTF-8 text; - is standard input")
    train.add_argument("--hidden-size", type=int, default=256, help="hidden units")
    train.add_argument("--seq-length", type=int, default=32, help="steps of backpropagation")
    train.add_argument("--batch-size", type=int, default=16, help="streams of text read side by side")
    train.add_argument("--learning-rate", type=float, default=6e-3, help="its peak, after the warm-up")
    train.add_argument("--optimizer", default="adam", choices=OPTIMIZERS, help="update rule")
    train.add_argument("--max-iters", type=int, default=2500, help="iterations, one update each")
    train.add_argument("--threshold", type=float, default=0.0, help="stop at this smooth loss")
    train.add_argument("--val-fraction", type=float, default=0.1, help="share of the text held out")
    train.add_argument("--seed", type=int, default=0, help="seed of the random numbers")
    train.add_argument("--checkpoint", default="char_rnn.npz", help="file to save in")
    train.add_argument("--resume", action="store_true", help="go on exactly where the checkpoint was saved")
    train.add_argument("--log", metavar="CSV", help="file for the losses, a line for each row")
    train.add_argument("--plot", metavar="PNG", help="file for a picture of the losses (needs matplotlib)")

    sample = commands.add_parser("sample", help="write text with a trained model", **formatter)
    sample.set_defaults(run=sample_command)
    sample.add_argument("checkpoint", nargs="?", default="char_rnn.npz", help="checkpoint of a trained model")
    start = sample.add_mutually_exclusive_group()
    start.add_argument("--start", metavar="TEXT", help="text to go on from")
    start.add_argument("--start-file", metavar="FILE", help="file with that text; - is standard input")
    sample.add_argument("--length", type=int, default=400, help="characters to draw")
    sample.add_argument("--temperature", type=float, default=1.0, help="under 1 less random, over 1 more")
    sample.add_argument("--seed", type=int, help="seed of the random numbers")

    test = commands.add_parser("test", help="measure how well a trained model predicts a text", **formatter)
    test.set_defaults(run=test_command)
    test.add_argument("checkpoint", help="checkpoint of a trained model")
    test.add_argument("text", help="UTF-8 text")
    test.add_argument("--show", type=int, metavar="N", help="print the losses of the first N characters")

    if not argv or argv[0] not in (*commands.choices, "-h", "--help"):
        if argv and not argv[0].startswith("-") and not os.path.exists(argv[0]):
            parser.error(f"{argv[0]} is neither a command ({', '.join(commands.choices)}) nor a file")
        argv = ["train", *argv]
    args = parser.parse_args(argv)
    if args.run is train_command and not args.resume:
        return args, None, None
    rnn, about = load_checkpoint(args.checkpoint)
    if args.run is train_command:
        saved = {name: about.settings[name] for name in SETTINGS if name in about.settings}
        train.set_defaults(**saved)  # on the subparser, because argparse ignores them on the parent
        args = parser.parse_args(argv)
        for name in saved.keys() - {"max_iters", "threshold"}:
            if (given := getattr(args, name)) != saved[name]:
                raise ValueError(f"{args.checkpoint} was trained with {name} {saved[name]}, not {given}")
    else:
        rnn.use_best()
    return args, rnn, about


def main(argv=None):
    """Run the command line; returns the exit status: 2 after an error, told in one line, 130 after Ctrl-C."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # exit silently when "| head" is done
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    try:
        args, rnn, about = parse(sys.argv[1:] if argv is None else argv)
        return args.run(args, rnn, about) or 0
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, OverflowError, MemoryError, ImportError) as error:
        print(f"char_rnn.py: error: {str(error) or 'out of memory'}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

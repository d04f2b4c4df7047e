# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=1.26"]
# ///
# SPDX-License-Identifier: MIT-0
"""A character-level recurrent neural network, from scratch in NumPy.

    python char_rnn.py                              learn to write fables, in a quarter of a minute
    python char_rnn.py train my.txt                 learn from your own text
    python char_rnn.py resume                       go on with a run that was stopped
    python char_rnn.py sample                       write new text with what was learned
    python char_rnn.py test char_rnn.npz other.txt  measure how well it predicts another text

One hidden layer reads a text character by character (x_t, one-hot) and says how likely each next
one is (y_t):

    a_t = tanh(n_t)       n_t = Waa a_{t-1} + Wax x_t + ba
    y_t = softmax(z_t)    z_t = Wya a_t + by
    L   = - sum over t of log y_t[target_t]

Shapes, everywhere below: T steps, B streams read side by side, H hidden units, V characters.
"""

import argparse
import io
import json
import math
import os
import re
import secrets
import shlex
import signal
import sys
import time
import zipfile
import zlib
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

# One thread: on a busy machine, threads that wait for each other are 10 to 50 times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

# Touches the memory that products work in: up to 2.2x faster on virtual machines. Freeing 12 MB then
# makes glibc keep what is freed for the next arrays: up to 1.5x faster.
np.ones((64, 384), np.float32) @ np.ones((384, 8192), np.float32)


class Mistake(ValueError):
    """What a user can mend: the command line tells it in one line. All else is a bug."""


# --------------------------------------------------------------------------------------------------
# Text: from a file to batches of character indices


class DataReader:
    """Reads a UTF-8 text and deals it out as batches of character indices.

    chars are the V distinct characters, sorted, unless they are given. The last val_fraction of the
    text is held out in val_ids (nothing, if the text is too short). The rest is cut into batch_size
    stretches of equal length, the streams. All are read at the same time, each from its start to
    its end, seq_length characters a batch; the last batch of a pass may be shorter.
    Raises Mistake for a text that is not UTF-8, is too short, or has fewer than 2 characters.
    """

    def __init__(
        self, path, seq_length, batch_size=1, val_fraction=0.1, chars=None, shuffle_lines=False
    ):
        if not 0 <= val_fraction < 1:
            raise Mistake(f"val_fraction must be at least 0 and less than 1, not {val_fraction}")
        self.path = path
        self.val_fraction = val_fraction
        self.shuffle_lines = shuffle_lines
        text = read_text(path)
        self.checksum = zlib.crc32(text.encode())  # to know the text again
        if shuffle_lines:
            text = shuffled(text)
        self.chars = chars or sorted(set(text))
        self.vocab_size = len(self.chars)
        if self.vocab_size < 2 or len(text) <= batch_size:
            raise Mistake(
                f"{path} has {len(text)} characters: more than {batch_size} are needed "
                f"(--batch-size), and 2 distinct ones"
            )

        ids = encode(text, self.chars)
        held_out = int(len(ids) * val_fraction)
        if held_out < 2 or len(ids) - held_out <= batch_size:
            held_out = 0
        self.train_ids = ids[: len(ids) - held_out]
        self.val_ids = ids[len(ids) - held_out :]
        self.seq_length = seq_length
        self.batch_size = batch_size
        steps = (len(self.train_ids) - 1) // batch_size
        used = batch_size * steps
        self.inputs = self.train_ids[:used].reshape(batch_size, steps).T  # a column is a stream
        self.targets = self.train_ids[1 : used + 1].reshape(batch_size, steps).T
        self.batches = math.ceil(steps / seq_length)  # in a pass over the text
        self.batch = 0  # the next one

    def just_started(self):
        """True when the next batch is the first of a pass, where the hidden state is zero."""
        return self.batch == 0

    def next_batch(self):
        """The next (inputs, targets), each (T, B): the targets are one character later."""
        start = self.batch * self.seq_length
        steps = slice(start, start + self.seq_length)
        self.batch = (self.batch + 1) % self.batches
        return self.inputs[steps].astype(np.intp), self.targets[steps].astype(np.intp)


def read_text(path):
    """The text of a UTF-8 file, without a byte-order mark, its line ends made newlines."""
    try:
        with open(0 if path == "-" else path, encoding="utf-8-sig") as file:  # 0: standard input
            text = file.read()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise Mistake(f"{path} is not UTF-8 text (see line {line}): save it as UTF-8") from None
    if "\0" in text:
        raise Mistake(f"{path} is not UTF-8 text (it has zero bytes): save it as UTF-8")
    return text


def shuffled(text):
    """The lines of a text in another order, always the same one; each ends in a newline."""
    lines = text.removesuffix("\n").split("\n")
    np.random.default_rng(0).shuffle(lines)
    return "\n".join(lines) + "\n"


def encode(text, chars):
    """The characters of a text as an array of indices into chars; Mistake names those not in it."""
    unknown = len(chars)
    places = [ord(char) for char in chars]
    index = np.full(max(places) + 2, unknown, np.min_scalar_type(unknown))  # by code point
    index[places] = np.arange(len(chars))
    ids = np.empty(len(text), index.dtype)
    size = 1 << 20
    for start in range(0, len(text), size):  # in pieces: UTF-32 takes four bytes a character
        piece = text[start : start + size].encode("utf-32-le", "surrogatepass")
        code_points = np.frombuffer(piece, np.uint32)
        ids[start : start + size] = index.take(code_points, mode="clip")  # the last: unknown
    if ids.max(initial=0) == unknown:
        raise Mistake(f"the model never saw {names_of(set(text) - set(chars))}")
    return ids


def names_of(chars):
    """Some characters as one can read them: 'é' '\\t'."""
    return " ".join(map(repr, sorted(chars)))[:200]


# --------------------------------------------------------------------------------------------------
# Mathematics: softmax, the network with its training, and a check of its gradients


def softmax(x, axis=-1):
    """exp(x_i) / sum over j of exp(x_j); the maximum is subtracted first, against overflow."""
    x = np.asarray(x) * 1.0  # lists and whole numbers become floats
    exp = np.exp(x - x.max(axis=axis, keepdims=True))
    return exp / exp.sum(axis=axis, keepdims=True)


def sum_outer(u, v):
    """The sum of u_t v_t' over all steps and streams: (T, B, I) and (T, B, J) give (I, J).

    Put below each other, the rows u_t make a matrix (T B, I) and the rows v_t a matrix (T B, J):
    the product of the first, transposed, with the second is that sum.
    """
    return u.reshape(-1, u.shape[-1]).T @ v.reshape(-1, v.shape[-1])


class RNN:
    """A one-layer tanh RNN with a softmax over the next character.

    It holds its sizes, its settings and five arrays: Wax (H, V), Waa (H, H), Wya (V, H), ba (H,),
    by (V,). Where its training stands is kept in a Run. Take dtype=np.float64 to check gradients.
    Raises Mistake for a learning rate or an optimiser that cannot be.
    """

    def __init__(
        self,
        hidden_size,
        vocab_size,
        seq_length,
        learning_rate,
        optimizer="adam",
        seed=0,
        dtype=np.float32,
    ):
        if not 0 < learning_rate < math.inf:
            raise Mistake(f"learning_rate must be a positive number, not {learning_rate}")
        if optimizer not in OPTIMIZERS:
            raise Mistake(f"optimizer must be one of {', '.join(OPTIMIZERS)}, not {optimizer}")
        self.hidden_size = hidden_size
        self.vocab_size = vocab_size
        self.seq_length = seq_length
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.dtype = np.dtype(dtype)

        # 3 Wax: after different characters the states start far apart, which learns faster than 1.
        # Waa is orthogonal, the Q of QR: it keeps the length of a.
        # Wya / sqrt(H): as each a is at most 1 in size, z has variance 1 at most.
        H, V = hidden_size, vocab_size
        rng = np.random.default_rng(seed)
        self.Wax = (3 * rng.standard_normal((H, V))).astype(dtype)
        self.Waa = np.linalg.qr(rng.standard_normal((H, H)))[0].astype(dtype)
        self.Wya = (rng.standard_normal((V, H)) / math.sqrt(H)).astype(dtype)
        self.ba = np.zeros(H, dtype)
        self.by = np.zeros(V, dtype)

    def parameters(self):
        """A dict of the parameters by name: the arrays themselves, not copies."""
        return {name: getattr(self, name) for name in ("Wax", "Waa", "Wya", "ba", "by")}

    def use(self, values):
        """Give every parameter the values that stand under its name in a dict, such as run.best."""
        for name, w in self.parameters().items():
            w[...] = values[name]

    def forward(self, inputs, a_prev):
        """The hidden states, and how likely each character is to come next, at every step.

            a_t = tanh(Waa a_{t-1} + Wax x_t + ba)        y_t = softmax(Wya a_t + by)

        inputs are indices of characters, (T, B) with a_prev (B, H), or a single sequence, (T,) with
        (H,). Returns a (T+1, B, H), where a[0] is a_prev and a[t + 1] is a_t, counted from t = 0,
        and y_pred (T, B, V), or both without B. Raises Mistake for anything but indices.
        """
        inputs = self.as_indices(inputs)
        a = np.empty((len(inputs) + 1, *inputs.shape[1:], self.hidden_size), self.dtype)
        a[0] = a_prev
        from_x = self.Wax.T[inputs] + self.ba  # x_t is one-hot: Wax x_t is a column of Wax
        Waa_T = self.Waa.T.copy()  # row by row in memory: so BLAS multiplies up to twice as fast
        for t in range(len(inputs)):
            a[t + 1] = np.tanh(a[t] @ Waa_T + from_x[t])  # the rows of a[t] are streams: a Waa'
        y_pred = softmax(self.logits(a[1:]))
        return a, y_pred

    def logits(self, a):
        """z_t = Wya a_t + by, for states a (..., H): (..., V)."""
        return a @ self.Wya.T + self.by

    def as_indices(self, inputs):
        """The inputs as an array, if they are indices of characters."""
        inputs = np.asarray(inputs)
        are_whole = inputs.ndim in (1, 2) and inputs.dtype.kind in "iu"
        if not are_whole or inputs.min(initial=0) < 0 or inputs.max(initial=0) >= self.vocab_size:
            raise Mistake(
                f"inputs must be indices from 0 to {self.vocab_size - 1}, (T, B) or (T,), "
                f"not {inputs.dtype} {inputs.shape}: {inputs!r:.60}"
            )
        return inputs

    def one_hot(self, indices):
        """A 1 at each index and 0 elsewhere: (T, B) to (T, B, V)."""
        ones = np.asarray(indices)[..., None] == np.arange(self.vocab_size)
        return ones.astype(self.dtype)

    def loss(self, y_pred, targets):
        """The cross-entropy L = - sum over t of log y_t[target_t] in nats; the streams' mean."""
        targets = np.asarray(targets)
        y_target = np.take_along_axis(np.asarray(y_pred), targets[..., None], axis=-1)
        smallest = np.finfo(self.dtype).tiny  # so that log never meets a probability rounded to 0
        nats = -np.log(np.maximum(y_target, smallest))
        return float(nats.sum()) / targets[0].size

    def backward(self, inputs, a, y_pred, targets):
        """The gradients of loss by backpropagation through time: an array for each parameter.

        dx means dL/dx, and ' is the transpose. At one step, the loss of the target depends on z by
            dL/dy_i = -1/y_i where i = target, else 0     dy_i/dz_j = y_i (1[i = j] - y_j)
            so that dL/dz_j = y_j - 1[j = target]
        From there through the layers, and from the last step to the first:
            dz_t = (y_t - onehot(target_t)) / B           the mean over streams
            da_t = Wya' dz_t + Waa' dn_{t+1}              from this output and from the next step
            dn_t = (1 - a_t^2) da_t                       through the tanh
            dWya = sum dz_t a_t'      dby = sum dz_t
            dWax = sum dn_t x_t'      dba = sum dn_t      dWaa = sum dn_t a_{t-1}'
        The first a_prev counts as a constant: no gradient reaches the batch before. In the code
        each vector is a row, so that Wya' dz_t is dz[t] @ Wya.
        """
        a = np.asarray(a)
        streams = np.size(targets[0])
        dz = (y_pred - self.one_hot(targets)) / streams
        from_z = dz @ self.Wya
        slope = 1 - a[1:] ** 2
        dn = np.zeros_like(a)  # one step longer: after the last step there is nothing, dn[T] = 0
        for t in reversed(range(len(inputs))):
            dn[t] = slope[t] * (from_z[t] + dn[t + 1] @ self.Waa)
        dn = dn[:-1]
        all_steps = tuple(range(dn.ndim - 1))  # the axes T and B
        return {
            "Wax": sum_outer(dn, self.one_hot(inputs)),
            "Waa": sum_outer(dn, a[:-1]),
            "Wya": sum_outer(dz, a[1:]),
            "ba": dn.sum(axis=all_steps),
            "by": dz.sum(axis=all_steps),
        }

    def update(self, grads, run, scale=1.0):
        """One step of the optimiser at learning_rate * scale; gradients are clipped to [-5, 5]."""
        run.iteration += 1
        rule, _ = OPTIMIZERS[self.optimizer]
        rate = self.learning_rate * scale
        for name, w in self.parameters().items():
            g = grads[name].clip(-5, 5)  # against exploding gradients
            step, run.m[name], run.v[name] = rule(g, run.m[name], run.v[name], run.iteration, rate)
            w -= step  # in place: this changes self.Wax and so on

    @np.errstate(over="ignore", invalid="ignore")  # a loss that is not finite is told below
    def train(self, reader, max_iters=2500, threshold=0.0, report=None, run=None):
        """The nine steps, until max_iters or a smooth loss of threshold; returns the run.

        A run that is passed in goes on where it stands; without one, a new run starts from the
        weights that are there. It validates at iterations 0, 100, 250, every run.eval_interval and
        the last. It calls report(run) at 0 and after every iteration; by default that prints the
        rows. The network ends with the weights that it reached: rnn.use(run.best) takes the best.
        Raises Mistake for a threshold that guessing reaches, and for a loss that is not finite.
        """
        self.check_threshold(threshold)
        run = run or Run(self)
        run.max_iters = max_iters
        run.threshold = threshold
        report = report or partial(print_progress, self, reader)
        reader.batch = run.iteration % reader.batches  # the next one, where the run stands
        started = time.perf_counter() - run.seconds
        if not run.history:
            self.validate(reader, run)
            report(run)
        while not run.stop and not run.ended():  # step 9: repeat
            if reader.just_started():  # step 1: a zero state at the start of the text
                run.a_prev = np.zeros((reader.batch_size, self.hidden_size), self.dtype)
            inputs, targets = reader.next_batch()  # step 2: a batch
            a, y_pred = self.forward(inputs, run.a_prev)  # step 3: forward
            loss = self.loss(y_pred, targets)
            if not math.isfinite(loss):
                raise Mistake(
                    f"the loss is {loss} at iteration {run.iteration + 1}: "
                    f"try a learning rate below {self.learning_rate:g}"
                )
            grads = self.backward(inputs, a, y_pred, targets)  # step 4: backward
            self.update(grads, run, schedule(run.iteration, max_iters))  # step 5: update
            run.add_loss(loss / len(inputs))  # step 6: the loss of step 3, for each character
            run.a_prev = a[-1]  # step 7: the state that the next batch starts from
            run.seconds = time.perf_counter() - started
            if run.row_is_due() or run.ended():
                self.validate(reader, run)
            report(run)  # step 8: print progress
        return run

    def check_threshold(self, threshold):
        """Refuse a threshold, in nats per character, that is reached without training."""
        guessing = math.log(self.vocab_size)
        if not 0 <= threshold < guessing:
            raise Mistake(
                f"the threshold is {threshold} nats per character: "
                f"take one below {guessing:.3f}, which guessing costs"
            )

    def validate(self, reader, run):
        """Add a row to the history of a run, and keep the weights if they are the best so far."""
        recent = run.losses[run.history[-1][0] :] if run.history else []
        train_loss = sum(recent) / len(recent) if recent else math.nan
        val_loss = math.nan
        if len(reader.val_ids):
            val_loss = self.evaluate(reader.val_ids, at_most=131_072)
        if not any(row[3] <= val_loss for row in run.history):  # true, if nothing is held out
            run.best = copies(self.parameters())
        run.history.append([run.iteration, run.seconds, train_loss, val_loss])

    def evaluate(self, ids, at_most=None):
        """The mean loss per character, in nats, of a text given as indices.

        A long text is read as up to 64 streams of at least 2,000 characters that together cover all
        of it, each from a zero state; or at_most so many characters, spread evenly over the text.
        """
        if len(ids) < 2:
            raise Mistake(f"nothing to predict in {len(ids)} character(s): take 2 or more")
        streams = min(64, max(1, len(ids) // 2000))
        steps = math.ceil((len(ids) - 1) / streams)
        if at_most:
            steps = min(steps, at_most // streams)
        starts = np.linspace(0, len(ids) - 1 - steps, streams).astype(int)
        text = np.stack([ids[start : start + steps + 1] for start in starts], axis=1)
        a_prev = np.zeros((streams, self.hidden_size), self.dtype)
        nats = 0.0
        for start in range(0, steps, 100):  # 100 steps, and one target more, to save memory
            piece = text[start : start + 101]
            a, y_pred = self.forward(piece[:-1], a_prev)
            nats += self.loss(y_pred, piece[1:])
            a_prev = a[-1]
        return nats / steps

    def draw(self, a_prev, ix, temperature=1.0, seed=None):
        """Indices without end, each drawn from softmax(z_t / temperature) and fed back as x_t.

        The first input is ix, with hidden state a_prev (H,). Temperature 0 takes the likeliest.
        """
        if not 0 <= temperature < math.inf:
            raise Mistake(f"temperature must be a number from 0 on, not {temperature}")
        rng = np.random.default_rng(seed)
        while True:
            a, _ = self.forward([ix], a_prev)
            a_prev = a[-1]
            z = self.logits(a_prev).astype(np.float64)  # the softmax of forward has no temperature
            if not np.isfinite(z).all():
                raise Mistake("the weights have grown too large: try a lower learning rate")
            y = softmax(z / max(temperature, 1e-6))  # at 0 the likeliest one wins
            ix = int(rng.choice(self.vocab_size, p=y))
            yield ix

    def sample(self, a_prev, seed_ix, n, temperature=1.0, seed=None):
        """A list of n indices, as draw gives them; a seed gives the same ones each time."""
        return list(islice(self.draw(a_prev, seed_ix, temperature, seed), n))

    def write(self, reader, start, temperature=1.0, seed=None):
        """Characters without end that go on from the text start, all of which is read first."""
        ids = encode(start, reader.chars)
        a, _ = self.forward(ids[:-1], np.zeros(self.hidden_size))
        for ix in self.draw(a[-1], int(ids[-1]), temperature, seed):
            yield reader.chars[ix]

    def predict(self, reader, start, n, temperature=1.0, seed=None):
        """The text start and n new characters; all are in reader.chars."""
        return start + "".join(islice(self.write(reader, start, temperature, seed), n))


class Run:
    """Where a training run stands: everything but the network.

    iteration counts the updates, seconds is the time they took, and losses has the loss of each, in
    nats per character; smooth_loss is their moving average, which starts at that of guessing.
    history has a row [iteration, seconds, training loss, validation loss] for every validation.
    max_iters and threshold are those of the last train, eval_interval the iterations between rows.
    best holds the weights with the lowest validation loss (the latest, if nothing is held out). m
    and v are the moments of the optimiser, a_prev (B, H) is the hidden state before the next batch,
    and stop = True ends training after the iteration under way.
    """

    def __init__(self, rnn):
        self.iteration = 0
        self.seconds = 0.0
        self.smooth_loss = math.log(rnn.vocab_size)
        self.losses = []
        self.history = []
        self.best = copies(rnn.parameters())
        self.m = {name: np.zeros_like(w) for name, w in self.best.items()}
        self.v = dict(self.m)
        self.a_prev = np.zeros((0, rnn.hidden_size), rnn.dtype)  # no stream has been read yet
        self.max_iters = 2500
        self.threshold = 0.0
        self.eval_interval = 500
        self.stop = False

    def add_loss(self, loss):
        """Record the loss of an iteration."""
        self.losses.append(loss)
        self.smooth_loss += 0.01 * (loss - self.smooth_loss)

    def ended(self):
        """True after max_iters iterations, or when the smooth loss has fallen to threshold."""
        return self.iteration >= self.max_iters or self.smooth_loss <= self.threshold

    def row_is_due(self):
        """True at iterations 100 and 250, and at every eval_interval-th."""
        return self.iteration in (100, 250) or self.iteration % self.eval_interval == 0

    def just_validated(self):
        """True when the last row of history is of this iteration."""
        return self.history[-1][0] == self.iteration


def copies(arrays):
    """A dict with a copy of each array of a dict."""
    return {name: array.copy() for name, array in arrays.items()}


def check_gradients(rnn, inputs, targets, change=1e-5):
    """The largest difference between backward and central differences, for a network in float64.

        dL/dw is about (L(w + change) - L(w - change)) / (2 change)

    It is relative to the largest gradient of the same parameter: below 1e-6 backward is right, and
    above 1e-3 it is wrong. Raises Mistake for a network in another dtype.
    """
    if rnn.dtype != np.float64:
        raise Mistake(f"check_gradients needs a network with dtype=np.float64, not {rnn.dtype}")
    shape = (*np.shape(inputs)[1:], rnn.hidden_size)
    a_prev = np.random.default_rng(0).standard_normal(shape)
    a, y_pred = rnn.forward(inputs, a_prev)
    grads = rnn.backward(inputs, a, y_pred, targets)
    worst = 0.0
    for name, w in rnn.parameters().items():
        measured = np.zeros_like(w)
        for place in np.ndindex(w.shape):
            value = w[place]
            for step in (change, -change):
                w[place] = value + step
                _, y_pred = rnn.forward(inputs, a_prev)
                measured[place] += rnn.loss(y_pred, targets) / (2 * step)
            w[place] = value
        largest = max(np.abs(measured).max(), change)  # in case all of them are 0
        worst = max(worst, np.abs(grads[name] - measured).max() / largest)
    return worst


# --------------------------------------------------------------------------------------------------
# Optimisers: from a gradient g to the step that is subtracted, and the moments m and v after it


def adam(g, m, v, t, learning_rate, beta1=0.9, beta2=0.999, epsilon=1e-8):
    """The t-th step of Adam (Kingma and Ba, 2015): m and v are moving means of g and of g^2."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat = m / (1 - beta1**t)  # both moments started at zero: this corrects for it
    v_hat = v / (1 - beta2**t)
    return learning_rate * m_hat / (np.sqrt(v_hat) + epsilon), m, v


def adagrad(g, m, v, t, learning_rate, epsilon=1e-10):
    """A step of Adagrad (Duchi, Hazan and Singer, 2011): v is the sum of all g^2 so far."""
    v = v + g**2
    return learning_rate * g / (np.sqrt(v) + epsilon), m, v


def sgd(g, m, v, t, learning_rate):
    """A step of stochastic gradient descent, which does not use m, v and t."""
    return learning_rate * g, m, v


# Each rule with the learning rate that did best on the fables.
OPTIMIZERS = {"adam": (adam, 5e-3), "adagrad": (adagrad, 0.1), "sgd": (sgd, 0.06)}


def schedule(iteration, max_iters):
    """The share of the learning rate: a linear warm-up, times half a cosine from 1 down to 0.

    The warm-up takes 100 iterations, or a tenth of a short run.
    """
    warm_up = min(1, (iteration + 1) / min(100, max_iters / 10))
    return warm_up * (1 + math.cos(math.pi * iteration / max_iters)) / 2


# --------------------------------------------------------------------------------------------------
# Checkpoint: all that sampling and an exact resume need, in one .npz file

OF_READER = ("path", "batch_size", "val_fraction", "chars", "shuffle_lines", "checksum")
OF_RUN = ("seconds", "history", "max_iters", "threshold", "eval_interval")


def free_name(path):
    """Create the first of path, path-2, path-3, ... that is free, and return its name."""
    stem, ending = os.path.splitext(path)
    name = path
    number = 1
    while True:
        try:
            open(name, "xb").close()
            return name
        except FileExistsError:
            number += 1
            name = f"{stem}-{number}{ending}"


def newest():
    """The newest char_rnn*.npz in this folder; its name is printed."""
    found = sorted(Path().glob("char_rnn*.npz"), key=os.path.getmtime)
    if not found:
        raise Mistake("there is no char_rnn*.npz here: train first, or name a checkpoint")
    print(f"from {found[-1]}", file=sys.stderr)
    return str(found[-1])


def write_whole(path, data, new=False):
    """Write bytes to a file whole or not at all, and return its name.

    They go to a temporary file beside it, which is then renamed. A new file takes the first free
    name of path, path-2, path-3, ..., and else a link stays a link.
    """
    real = os.path.realpath(path)
    temporary = f"{real}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if new:
            real = path = free_name(path)
        os.replace(temporary, real)
        return path
    except OSError as error:
        error.filename = path  # and not the temporary one
        raise
    finally:
        Path(temporary).unlink(missing_ok=True)


def arrays_of(rnn, run):
    """All arrays by their names in a checkpoint: Wax, best_Wax, m_Wax, v_Wax, and so on."""
    arrays = {"a_prev": run.a_prev, "losses": np.array(run.losses)}
    for name, w in rnn.parameters().items():
        arrays[name] = w
        arrays[f"best_{name}"] = run.best[name]
        arrays[f"m_{name}"] = run.m[name]
        arrays[f"v_{name}"] = run.v[name]
    return arrays


def save_checkpoint(path, rnn, run, reader, new=False):
    """Save a network, its run, and where its text is, with a checksum; returns the file's name."""
    sizes = (rnn.hidden_size, rnn.vocab_size, reader.seq_length)
    network = [*sizes, rnn.learning_rate, rnn.optimizer]
    about = {"network": network, "dtype": rnn.dtype.name}
    for name in OF_READER:
        about[name] = getattr(reader, name)
    for name in OF_RUN:
        about[name] = getattr(run, name)
    file = io.BytesIO()
    np.savez(file, about=np.array(json.dumps(about)), **arrays_of(rnn, run))
    return write_whole(path, file.getvalue(), new)


def load_checkpoint(path, model=RNN):
    """A network of a class, its run, and all else that was saved: about.chars, and so on.

    The network has the weights that it had reached: rnn.use(run.best) takes the best. Nothing in
    the file is executed. Raises Mistake for a file that is damaged, of another kind, or without the
    parameters of such a network.
    """
    data = Path(path).read_bytes()
    try:
        return unpack(path, data, model)
    except Mistake:
        raise
    except Exception as error:  # damaged bytes can raise almost anything
        raise Mistake(f"{path} is damaged, or no checkpoint of char_rnn.py: {error}") from error


def unpack(path, data, model):
    """What load_checkpoint returns, from the bytes of a file."""
    if zipfile.ZipFile(io.BytesIO(data)).testzip():  # np.load does not compare the checksums
        raise ValueError("a checksum is wrong")
    arrays = dict(np.load(io.BytesIO(data), allow_pickle=False))
    about = SimpleNamespace(**json.loads(str(arrays.pop("about"))))
    if not hasattr(about, "network"):
        raise Mistake(f"{path} is of an earlier version of char_rnn.py: train again")
    if len(data) < about.network[0] ** 2:  # before a network of that size is built
        raise ValueError("its sizes do not fit")
    rnn = model(*about.network, dtype=about.dtype)
    run = Run(rnn)
    for name in OF_RUN:
        setattr(run, name, getattr(about, name))
    run.a_prev = arrays["a_prev"].reshape(-1, rnn.hidden_size)
    for loss in arrays["losses"].tolist():
        run.add_loss(loss)
    run.iteration = len(run.losses)

    expected = layout(arrays_of(rnn, run))
    found = layout(arrays)
    if found != expected:
        names = sorted(dict(found.items() ^ expected.items()))
        raise Mistake(
            f"{path} is not of a network of class {model.__name__}: see {', '.join(names)}"
        )
    rnn.use(arrays)
    for name in rnn.parameters():
        run.best[name] = arrays[f"best_{name}"]
        run.m[name] = arrays[f"m_{name}"]
        run.v[name] = arrays[f"v_{name}"]
    return rnn, run, about


def layout(arrays):
    """The shape and the type of each array of a dict."""
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}


# --------------------------------------------------------------------------------------------------
# Command line

DATA = str(Path(__file__).resolve().with_name("data") / "fables.txt")
PLOT = "file for a picture of the losses; needs matplotlib"
HEADER = "iteration  smooth  train  valid   left  sample"


def say(text):
    """Print a text, at once; on a terminal without the control characters that could steer it."""
    if sys.stdout.isatty():
        text = re.sub("[\0-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)
    print(text, end="", flush=True)


def print_progress(rnn, reader, run):
    """Print a row where a run has just validated, else, on a terminal, a line that is replaced."""
    seconds_each = run.seconds / max(1, run.iteration)
    left = f"{seconds_each * (run.max_iters - run.iteration):,.0f} s"
    if run.just_validated():
        print_row(rnn, reader, run, left)
    elif sys.stdout.isatty() and run.iteration % max(1, int(0.2 / seconds_each)) == 0:
        speed = reader.inputs.size / reader.batches / seconds_each
        line = f"  loss {run.losses[-1]:.3f}  {speed:,.0f} characters/s  {left} left"
        print(f"{run.iteration:>9,}{line:61}", end="\r", flush=True)
    if run.ended() and 0 < run.threshold < run.smooth_loss:
        print(f"the threshold {run.threshold:g} was not reached: smooth is {run.smooth_loss:.3f}")


def print_row(rnn, reader, run, left):
    """Print the last row of history, the time left and a short sample."""
    iteration, _, train_loss, val_loss = run.history[-1]
    if iteration == 0:
        print(HEADER)
        left = "-"
    losses = f"{run.smooth_loss:>8.3f}{train_loss:>7.3f}{val_loss:>7.3f}".replace("nan", "  -")
    text = rnn.predict(reader, reader.chars[0], 38, temperature=0.7, seed=0)[1:]
    sample = "".join(char if char.isprintable() else " " for char in text)
    print(f"{iteration:>9,}{losses}{left:>7}  {sample}", flush=True)


def train_command(args):
    """Start a new run on a text, in a checkpoint of its own."""
    chars = None
    if args.init_from:
        model, model_run, about = load_checkpoint(args.init_from)
        chars = about.chars
        args.hidden_size = model.hidden_size
    options = (args.batch_size, args.val_fraction, chars, args.shuffle_lines)
    reader = DataReader(args.text, args.seq_length, *options)
    _, default_rate = OPTIMIZERS[args.optimizer]
    rate = default_rate if args.learning_rate is None else args.learning_rate
    sizes = (args.hidden_size, reader.vocab_size, args.seq_length)
    rnn = RNN(*sizes, rate, args.optimizer, args.seed)
    if chars:
        rnn.use(model_run.best)
    rnn.check_threshold(args.threshold)
    run = Run(rnn)
    run.max_iters = args.max_iters
    run.threshold = args.threshold
    run.eval_interval = args.eval_interval
    signal.signal(signal.SIGINT, partial(stop, run))
    draw_picture(args.plot, rnn, reader, run)  # what cannot be written shows before training
    path = save_checkpoint(args.checkpoint, rnn, run, reader, new=True)
    return learn(path, args.plot, rnn, reader, run)


def resume_command(args):
    """Go on with the run of a checkpoint as if it had not been stopped, or to more iterations."""
    path = args.checkpoint or newest()
    rnn, run, about = load_checkpoint(path)
    text = args.text or about.path
    options = (about.batch_size, about.val_fraction, about.chars, about.shuffle_lines)
    reader = DataReader(text, rnn.seq_length, *options)
    if reader.checksum != about.checksum:
        raise Mistake(f"{path} was trained on another text than {text}")
    run.max_iters = args.max_iters or run.max_iters
    signal.signal(signal.SIGINT, partial(stop, run))
    save(path, args.plot, rnn, reader, run)
    return learn(path, args.plot, rnn, reader, run)


def stop(run, number, frame):
    """Handle Ctrl-C: training ends after the iteration under way; a second Ctrl-C ends at once."""
    run.stop = True
    signal.signal(signal.SIGINT, signal.default_int_handler)


def learn(path, plot, rnn, reader, run):
    """Train until the end or Ctrl-C, saving at every row; returns the exit status."""
    print_heading(path, rnn, reader, run)
    report = partial(report_and_save, path, plot, rnn, reader)
    rnn.train(reader, run.max_iters, run.threshold, report, run)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if run.stop and not run.ended():
        save(path, plot, rnn, reader, run)
        print(f"\nstopped after iteration {run.iteration:,}, saved in {path}")
        if reader.path != "-":  # which cannot be read again
            flags = ["--plot", plot] if plot else []
            print(f"to go on:  {command_line('resume', path, *flags)}")
        return 130
    print_result(path, rnn, reader, run)
    return 0


def report_and_save(path, plot, rnn, reader, run):
    """Print progress, and save where a run has just validated."""
    print_progress(rnn, reader, run)
    if run.just_validated():
        save(path, plot, rnn, reader, run)


def save(path, plot, rnn, reader, run):
    """Write the picture, if one is wanted, and the checkpoint of a run."""
    draw_picture(plot, rnn, reader, run)
    save_checkpoint(path, rnn, run, reader)


def draw_picture(plot, rnn, reader, run):
    """Write a picture of the losses over the iterations, if one is wanted."""
    if not plot:
        return
    if os.path.realpath(plot) == os.path.realpath(reader.path):
        raise Mistake(f"--plot {plot} is the text: name another file")
    ending = Path(plot).suffix
    if ending not in (".png", ".svg", ".pdf"):
        raise Mistake(f"--plot must end in .png, .svg or .pdf, not {plot}")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise Mistake("--plot needs matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    iterations, _, train_losses, val_losses = np.reshape(run.history, (-1, 4)).T
    axes.plot(range(1, run.iteration + 1), run.losses, "C0", linewidth=0.2, label="each iteration")
    axes.plot(iterations, train_losses, "C0o-", label="training, mean since the last point")
    axes.plot(iterations, val_losses, "C1o-", label="validation")
    axes.axhline(math.log(rnn.vocab_size), color="grey", linestyle=":", label="guessing")
    axes.set(xlabel="iteration", ylabel="loss (nats per character)")
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format=ending[1:])
    write_whole(plot, picture.getvalue())


def print_heading(path, rnn, reader, run):
    """Print what is trained on what, how often it will be read, and where the run stands."""
    size = sum(w.size for w in rnn.parameters().values())
    print(f"{Path(reader.path).name}, {rnn.hidden_size} hidden units, {size:,} parameters")
    times = f"{run.max_iters / reader.batches:.1f} times in {run.max_iters:,} iterations"
    print(f"{len(reader.train_ids):,} characters to train on, read {times}")
    print(f"{len(reader.val_ids):,} characters held out to validate")
    V = rnn.vocab_size
    print(f"losses are in nats per character; guessing among {V} costs {math.log(V):.3f}")
    print(f"saving in {path}\n")
    if run.ended():
        print(f"the run has ended at iteration {run.iteration:,}")
    elif run.history:
        print(HEADER)


def print_result(path, rnn, reader, run):
    """Print how good the best weights are, and what they write."""
    rnn.use(run.best)
    if len(reader.val_ids):
        nats = rnn.evaluate(reader.val_ids)
        print(f"\nvalidation loss {nats:.4f} nats per character, perplexity {math.exp(nats):.2f},")
        print(
            f"on all {len(reader.val_ids):,} characters held out, with the weights of the best row"
        )
    print()
    for char in islice(rnn.write(reader, reader.chars[0], temperature=0.7, seed=0), 300):
        say(char)
    print(f"\n\nfor more text:\n{command_line('sample', path)}")


def command_line(command, path, *flags):
    """A command as one types it."""
    if path.startswith("-"):  # which would be taken for a flag
        path = f"./{path}"
    return f"python {shlex.join([sys.argv[0], command, path, *flags])}"


def sample_command(args):
    """Print new text as it is drawn: so many characters after a start, or so many lines."""
    rnn, run, about = load_checkpoint(args.checkpoint or newest())
    rnn.use(run.best)
    start = args.start or ("" if args.lines else about.chars[0])
    before = "\n" if args.lines else ""
    length = 1000 if args.lines else args.length
    rng = np.random.default_rng(args.seed)
    for _ in range(args.lines or 1):
        say(start)
        for char in islice(rnn.write(about, before + start, args.temperature, rng), length):
            if args.lines and char == "\n":
                break
            say(char)
        say("\n")


def test_command(args):
    """Print how well a model predicts a text, as a whole or line by line."""
    rnn, run, about = load_checkpoint(args.checkpoint)
    rnn.use(run.best)
    text = read_text(args.text)
    if zlib.crc32(text.encode()) == about.checksum:
        print("the model was trained on this text", file=sys.stderr)
    if unknown := set(text) - set(about.chars):
        print(f"left out, as the model never saw them: {names_of(unknown)}", file=sys.stderr)
        text = "".join(char for char in text if char not in unknown)
    if args.lines:
        for line in io.StringIO(text):
            nats = rnn.evaluate(encode("\n" + line, about.chars))
            say(f"{nats:7.3f}  {line}")
        return
    nats = rnn.evaluate(encode(text, about.chars))
    print(f"{nats:.4f} nats ({nats / math.log(2):.4f} bits) per character")
    print(f"perplexity {math.exp(nats):.2f}; guessing would have {rnn.vocab_size}")


def whole(text, least=1):
    """A whole number, from least to a billion."""
    number = int(text) if re.fullmatch("[0-9]{1,10}", text) else -1
    if not least <= number <= 10**9:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least} on, not {text:.40}")
    return number


def add_train(train):
    """The arguments of the command train."""
    train.set_defaults(run=train_command)
    add = train.add_argument
    add("text", nargs="?", default=DATA, help="UTF-8 text; - is standard input")
    size = train.add_mutually_exclusive_group()
    size.add_argument("--hidden-size", type=whole, default=256, help="hidden units (256)")
    meaning = "start from the weights and characters of this checkpoint"
    size.add_argument("--init-from", metavar="NPZ", help=meaning)
    add("--seq-length", type=whole, default=32, help="steps of backpropagation (32)")
    add("--batch-size", type=whole, default=16, help="streams of text read side by side (16)")
    add("--optimizer", default="adam", choices=OPTIMIZERS, help="update rule (adam)")
    rates = ", ".join(f"{rate:g} for {name}" for name, (_, rate) in OPTIMIZERS.items())
    add("--learning-rate", type=float, help=f"its peak, after the warm-up ({rates})")
    add("--max-iters", type=whole, default=2500, help="iterations, one update each (2500)")
    add("--threshold", type=float, default=0.0, help="stop at this smooth loss (0: never)")
    add("--eval-interval", type=whole, default=500, help="iterations from row to row (500)")
    add("--val-fraction", type=float, default=0.1, help="share of the text held out (0.1)")
    meaning = "put the lines in another order first: for lists of names"
    add("--shuffle-lines", action="store_true", help=meaning)
    add("--seed", type=partial(whole, least=0), default=0, help="of the random numbers (0)")
    meaning = "file to save in; if it is there, NAME-2.npz, and so on (char_rnn.npz)"
    add("--checkpoint", metavar="NPZ", default="char_rnn.npz", help=meaning)
    add("--plot", metavar="PNG", help=PLOT)


def add_resume(resume):
    """The arguments of the command resume."""
    resume.set_defaults(run=resume_command)
    resume.add_argument("checkpoint", nargs="?", help="checkpoint (the newest char_rnn*.npz)")
    resume.add_argument("text", nargs="?", help="its text, if it is elsewhere now")
    meaning = "iterations in all; going past the end raises the learning rate again"
    resume.add_argument("--max-iters", type=whole, help=meaning)
    resume.add_argument("--plot", metavar="PNG", help=PLOT)


def add_sample(sample):
    """The arguments of the command sample."""
    sample.set_defaults(run=sample_command)
    add = sample.add_argument
    add("checkpoint", nargs="?", help="trained model (the newest char_rnn*.npz)")
    add("--start", metavar="TEXT", help="text to go on from")
    end = sample.add_mutually_exclusive_group()
    number = partial(whole, least=0)
    end.add_argument("--length", type=number, default=400, help="characters to draw (400)")
    meaning = "draw N lines instead, of at most 1,000 characters"
    end.add_argument("--lines", type=whole, default=0, metavar="N", help=meaning)
    add("--temperature", type=float, default=1.0, help="under 1 less random, over 1 more (1)")
    add("--seed", type=number, help="of the random numbers (another each time)")


def add_test(test):
    """The arguments of the command test."""
    test.set_defaults(run=test_command)
    test.add_argument("checkpoint", help="trained model")
    test.add_argument("text", help="UTF-8 text; - is standard input")
    test.add_argument("--lines", action="store_true", help="nats per character before each line")


def parse(argv):
    """The arguments of the command line; a command that is left out is train."""
    meaning = "A character-level recurrent neural network, from scratch in NumPy."
    parser = argparse.ArgumentParser(prog="char_rnn.py", description=meaning)
    commands = parser.add_subparsers(title="commands", required=True)
    add_train(commands.add_parser("train", help="learn from a text (also without a command)"))
    add_resume(commands.add_parser("resume", help="go on with a run that was stopped"))
    add_sample(commands.add_parser("sample", help="write text with a trained model"))
    add_test(commands.add_parser("test", help="measure how well a model predicts a text"))
    if argv and argv[0] in (*commands.choices, "-h", "--help"):
        return parser.parse_args(argv)
    return parser.parse_args(["train", *argv])


def main(argv):
    """Run the command line; the exit status is 2 after a mistake, told in one line."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # exit silently when "| head" is done
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            encoding = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="replace")
    try:
        args = parse(argv)
        return args.run(args)
    except KeyboardInterrupt:
        return 130
    except (Mistake, OSError, MemoryError) as error:
        print(f"char_rnn.py: error: {str(error) or 'out of memory'}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

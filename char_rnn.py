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
    L   = - sum over t of log y_t[target_t], averaged over the streams

n_t and z_t are what goes into the tanh and into the softmax (pre-activation and logits). Shapes,
everywhere below: T steps, B streams (pieces of the text that are read side by side), H hidden
units, V characters.
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
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

# One thread: on a busy machine, threads that wait for each other are 10 to 50 times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

# Speed only: a large product maps the memory that BLAS works in, or every later product is up to
# 2.2 times slower on a virtual machine; and when its 12 MB are freed, C's library learns to keep
# freed memory for the next arrays, up to 1.5 times faster.
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
    Raises Mistake for a text that is not UTF-8, is too short, has fewer than 2 characters or others
    than are given, or is another than that of a checksum.
    """

    def __init__(
        self,
        path,
        seq_length,
        batch_size=1,
        val_fraction=0.1,
        chars=None,
        shuffle_lines=False,
        checksum=None,
    ):
        self.path = str(path)
        self.seq_length = seq_length
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.shuffle_lines = shuffle_lines
        text = read_text(self.path)
        self.checksum = zlib.crc32(text.encode())
        if checksum not in (None, self.checksum):
            raise Mistake(f"{path} is not the text that the network was trained on")
        if shuffle_lines:
            text = shuffled(text)
        self.chars = chars or sorted(set(text))
        self.vocab_size = len(self.chars)
        if self.vocab_size < 2 or len(text) <= batch_size:
            raise Mistake(f"{path}: more than {batch_size} characters are needed, 2 distinct ones")

        ids = encode(text, self.chars)
        self.train_ids, self.val_ids = hold_out(ids, val_fraction, batch_size)
        self.inputs, self.targets = side_by_side(self.train_ids, batch_size)
        self.batches = math.ceil(len(self.inputs) / seq_length)  # in a pass over the text
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


def hold_out(ids, val_fraction, batch_size):
    """The part of a text to train on, and its end, held out unless one of both were too short."""
    if not 0 <= val_fraction < 1:
        raise Mistake(f"val_fraction must be at least 0 and less than 1, not {val_fraction}")
    end = len(ids) - int(len(ids) * val_fraction)
    if end <= batch_size or len(ids) - end < 2:
        end = len(ids)
    return ids[:end], ids[end:]


def side_by_side(ids, streams):
    """Inputs and targets, (steps, streams): equal stretches of a text, each in a column.

    A target is the character after its input. What does not fill a step at the end is left out.
    """
    steps = (len(ids) - 1) // streams
    used = streams * steps
    inputs = ids[:used].reshape(streams, steps).T
    targets = ids[1 : used + 1].reshape(streams, steps).T
    return inputs, targets


def names_of(chars):
    """Some characters as one can read them: 'é' '\\t'."""
    return " ".join(map(repr, sorted(chars)))[:200]


def opening(chars):
    """What a new text is begun after: a newline, where there is one."""
    return "\n" if "\n" in chars else chars[0]


# --------------------------------------------------------------------------------------------------
# Mathematics: softmax, the network with its training, and a check of its gradients


def softmax(x, axis=-1):
    """exp(x_i) / sum over j of exp(x_j); the maximum is subtracted first, against overflow."""
    x = np.asarray(x) * 1.0  # lists and whole numbers become floats
    exp = np.exp(x - x.max(axis=axis, keepdims=True))
    return exp / exp.sum(axis=axis, keepdims=True)


class RNN:
    """A one-layer tanh RNN with a softmax over the next character.

    It holds its sizes, its settings and five arrays: Wax (H, V), Waa (H, H), Wya (V, H), ba (H,),
    by (V,). Where its training stands is kept in a Run. Without a learning rate it takes the one
    of its optimiser in OPTIMIZERS. seq_length is kept for the record: batches are as long as the
    reader makes them. Take dtype=np.float64 to check gradients.
    Raises Mistake for a learning rate or an optimiser that cannot be.
    """

    def __init__(
        self,
        hidden_size,
        vocab_size,
        seq_length,
        learning_rate=None,
        optimizer="adam",
        seed=0,
        dtype=np.float32,
    ):
        if optimizer not in OPTIMIZERS:
            raise Mistake(f"optimizer must be one of {', '.join(OPTIMIZERS)}, not {optimizer}")
        if learning_rate is None:
            _, learning_rate = OPTIMIZERS[optimizer]
        if not 0 < learning_rate < math.inf:
            raise Mistake(f"learning_rate must be a positive number, not {learning_rate}")
        self.hidden_size = hidden_size
        self.vocab_size = vocab_size
        self.seq_length = seq_length
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.dtype = np.dtype(dtype).name

        # Wax has a spread of 3: states after different characters start far apart. On the fables
        # that is 0.02 nats better than a spread of 1, after as many seconds.
        # Waa is orthogonal, the Q of QR: it keeps the length of a, and of gradients going back.
        # Wya / sqrt(H): as each a is at most 1 in size, z has variance 1 at most.
        H, V = hidden_size, vocab_size
        rng = np.random.default_rng(seed)
        self.Wax = (3 * rng.standard_normal((H, V))).astype(dtype)
        self.Waa = np.linalg.qr(rng.standard_normal((H, H)))[0].astype(dtype)
        self.Wya = (rng.standard_normal((V, H)) / math.sqrt(H)).astype(dtype)
        self.ba = np.zeros(H, dtype)
        self.by = np.zeros(V, dtype)

    @property
    def state_size(self):
        """The length of what is carried from step to step: H here, 2 H in an LSTM."""
        return self.hidden_size

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
        (H,). Returns a (T+1, B, H) and y_pred (T, B, V), or both without B. a[0] is a_prev, and
        a[t] is a_t for t = 1 to T; Python counts from 0, so that inputs[0] is x_1 and y_pred[0] is
        y_1. Raises Mistake for anything but indices.
        """
        inputs = self.as_indices(inputs)
        a = np.empty((len(inputs) + 1, *inputs.shape[1:], self.hidden_size), self.dtype)
        a[0] = a_prev
        from_x = self.Wax.T[inputs] + self.ba  # x_t is one-hot: Wax x_t is a column of Wax
        Waa_T = self.Waa.T.copy()  # row by row in memory: so BLAS multiplies up to twice as fast
        for t in range(len(inputs)):
            a[t + 1] = np.tanh(np.dot(a[t], Waa_T) + from_x[t])  # a row of a[t] is a stream
        y_pred = softmax(self.logits(a[1:]))
        return a, y_pred

    def logits(self, a):
        """z_t = Wya a_t + by, for states a (..., H): (..., V)."""
        return a @ self.Wya.T + self.by

    def as_indices(self, characters):
        """Inputs or targets as an array, if they are indices of characters."""
        ids = np.asarray(characters)
        are_whole = ids.size and ids.ndim in (1, 2) and ids.dtype.kind in "iu"
        if not are_whole or ids.min() < 0 or ids.max() >= self.vocab_size:
            raise Mistake(
                f"inputs and targets must be indices from 0 to {self.vocab_size - 1}, "
                f"(T, B) or (T,), not {ids.dtype} {ids.shape}: {ids!r:.60}"
            )
        return ids

    def one_hot(self, ids):
        """A 1 at each index and 0 elsewhere: (T, B) to (T, B, V)."""
        ones = np.asarray(ids)[..., None] == np.arange(self.vocab_size)
        return ones.astype(self.dtype)

    def loss(self, y_pred, targets):
        """The cross-entropy L = - sum over t of log y_t[target_t], averaged over streams, in nats.

        Raises Mistake for targets that are no indices, and for a loss that is not a number.
        """
        targets = self.as_indices(targets)
        rows = np.reshape(y_pred, (-1, self.vocab_size))
        y_target = rows[np.arange(len(rows)), targets.ravel()]
        smallest = np.finfo(self.dtype).tiny  # so that log never meets a probability rounded to 0
        nats = -np.log(np.maximum(y_target, smallest))
        loss = float(nats.sum()) / targets[0].size
        if math.isnan(loss):
            raise Mistake(f"the loss is {loss}: try a learning rate below {self.learning_rate:g}")
        return loss

    def backward(self, inputs, a, y_pred, targets):
        """The gradients of loss by truncated backpropagation through time, for each parameter.

        dx means dL/dx, and ' is the transpose. At one step, the loss of the target depends on z by
            dL/dy_i = -1/y_i where i = target, else 0     dy_i/dz_j = y_i (1[i = j] - y_j)
            so that dL/dz_j = y_j - 1[j = target]         (1[...] is 1 where that is so, else 0)
        From there through the layers, and from the last step to the first:
            dz_t = (y_t - onehot(target_t)) / B           the mean over streams
            da_t = Wya' dz_t + Waa' dn_{t+1}              from this output and from the next step
            dn_t = (1 - a_t^2) da_t                       through the tanh, entry by entry
            dWya = sum dz_t a_t'      dby = sum dz_t      sums over steps and streams
            dWax = sum dn_t x_t'      dba = sum dn_t      dWaa = sum dn_t a_{t-1}'
        Truncated: a_prev counts as a constant, no gradient reaches the batch before. In the code
        each vector is a row, so that Wya' dz_t is dz[t] @ Wya; np.dot is the same product, which
        costs less for small arrays. Raises Mistake for targets that are no indices.
        """
        a = np.asarray(a)
        targets = self.as_indices(targets)
        streams = targets[0].size
        dz = (y_pred - self.one_hot(targets)) / streams
        from_z = dz @ self.Wya
        slope = 1 - a[1:] ** 2
        dn = np.zeros_like(a)  # one step longer: after the last step there is nothing, dn[T] = 0
        for t in reversed(range(len(inputs))):
            dn[t] = slope[t] * (from_z[t] + np.dot(dn[t + 1], self.Waa))
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
        """One step of the optimiser at learning_rate * scale; gradients are clipped to [-5, 5].

        Raises Mistake for a gradient that has not the shape of its parameter.
        """
        run.iteration += 1
        rule, _ = OPTIMIZERS[self.optimizer]
        rate = self.learning_rate * scale
        for name, w in self.parameters().items():
            g = np.asarray(grads[name], self.dtype)
            if g.shape != w.shape:
                raise Mistake(f"the gradient of {name} has shape {g.shape}, not {w.shape}")
            g = g.clip(-5, 5)  # against exploding gradients
            step, run.m[name], run.v[name] = rule(g, run.m[name], run.v[name], run.iteration, rate)
            w -= step  # in place: this changes self.Wax and so on

    @np.errstate(over="ignore", invalid="ignore")  # loss tells when it is not a number
    def train(self, reader, max_iters=None, threshold=None, report=None, run=None):
        """The nine steps, until max_iters or a smooth loss of threshold; returns the run.

        A run that is passed in goes on where it stands; without one, a new run starts from the
        weights that are there. Both ends are the run's own unless they are given. It validates at
        iterations 0, 100, 250, every run.eval_interval and the last. It calls report(run) at 0 and
        after every iteration; by default that prints the rows. The network ends with the weights
        that it reached: rnn.use(run.best) takes the best. Raises Mistake as loss and plan do.
        """
        run = run or Run(self)
        run.plan(max_iters, threshold)
        report = report or partial(print_progress, self, reader)
        reader.batch = run.iteration % reader.batches  # the next one, where the run stands
        started = time.perf_counter() - run.seconds
        if not run.history:
            run.validate(self, reader)
            report(run)
        while not run.stop and not run.ended():  # step 9: repeat
            if reader.just_started():  # step 1: a zero state at the start of the text
                run.a_prev = np.zeros((reader.batch_size, self.state_size))
            inputs, targets = reader.next_batch()  # step 2: a batch
            a, y_pred = self.forward(inputs, run.a_prev)  # step 3: forward
            loss = self.loss(y_pred, targets)
            grads = self.backward(inputs, a, y_pred, targets)  # step 4: backward
            self.update(grads, run, schedule(run.iteration, run.max_iters))  # step 5: update
            run.add_loss(loss / len(inputs))  # step 6: the loss of step 3, for each character
            run.a_prev = a[-1]  # step 7: the state that the next batch starts from
            run.seconds = time.perf_counter() - started
            if run.row_is_due() or run.ended():
                run.validate(self, reader)
            report(run)  # step 8: print progress
        return run

    def evaluate(self, ids):
        """The mean loss per character, in nats, of a text given as indices.

        A long text is read as up to 64 streams of at least 2,000 characters, each from a zero
        state. Raises Mistake for a text of fewer than 2 characters.
        """
        if len(ids) < 2:
            raise Mistake(f"nothing to predict in {len(ids)} character(s): take 2 or more")
        streams = max(1, min(64, len(ids) // 2000))
        inputs, targets = side_by_side(ids, streams)
        a_prev = np.zeros((streams, self.state_size))
        nats = 0.0
        for start in range(0, len(inputs), 100):  # in pieces, to save memory
            piece = slice(start, start + 100)
            a, y_pred = self.forward(inputs[piece], a_prev)
            nats += self.loss(y_pred, targets[piece])
            a_prev = a[-1]
        return nats / len(inputs)

    def draw(self, ids, a_prev, temperature, seed):
        """Generate indices without end: ids are read first, from the state a_prev (H,).

        Each new index is drawn from softmax(z_t / temperature) and is the next input. A temperature
        under 1 makes likely characters likelier; 0 always takes the likeliest. Raises Mistake for
        a temperature below 0 and for no ids.
        """
        if not 0 <= temperature < math.inf:
            raise Mistake(f"temperature must be a number from 0 on, not {temperature}")
        if len(ids) == 0:
            raise Mistake("the start is empty: give one character or more")
        rng = np.random.default_rng(seed)
        while True:
            a, _ = self.forward(ids, a_prev)
            a_prev = a[-1]
            z = self.logits(a_prev).astype(np.float64)  # the softmax of forward has no temperature
            y = softmax(z / max(temperature, 1e-6))  # at 0 the likeliest one wins
            ids = [int(rng.choice(self.vocab_size, p=y))]
            yield ids[0]

    def sample(self, a_prev, seed_ix, n, temperature=1.0, seed=None):
        """A list of n indices that follow seed_ix; a seed gives the same ones each time."""
        return list(islice(self.draw([seed_ix], a_prev, temperature, seed), n))

    def predict(self, reader, start, n, temperature=1.0, seed=None):
        """The text start and n new characters; Mistake for a character not in reader.chars."""
        ids = encode(start, reader.chars)
        drawn = self.draw(ids, np.zeros(self.state_size), temperature, seed)
        return start + "".join(reader.chars[ix] for ix in islice(drawn, n))


def sum_outer(u, v):
    """The sum of u_t v_t' over all steps and streams: (T, B, I) and (T, B, J) give (I, J).

    Put below each other, the rows u_t make a matrix (T B, I) and the rows v_t a matrix (T B, J):
    the product of the first, transposed, with the second is that sum.
    """
    return u.reshape(-1, u.shape[-1]).T @ v.reshape(-1, v.shape[-1])


def check_gradients(rnn, inputs, targets, change=1e-5):
    """How far backward is from central differences, by the name of each parameter.

        dL/dw is about (L(w + change) - L(w - change)) / (2 change)

    It is the largest difference, relative to the largest gradient of that parameter: below 1e-6
    backward is right, and above 1e-3 it is wrong. The first state is random, so that all gradients
    count from the first step on. Raises Mistake for a network that is not in
    float64, and where backward and parameters do not have the same names.
    """
    if rnn.dtype != "float64":
        raise Mistake(f"check_gradients needs a network with dtype=np.float64, not {rnn.dtype}")
    shape = (*np.shape(inputs)[1:], rnn.state_size)
    a_prev = np.random.default_rng(0).standard_normal(shape)
    a, y_pred = rnn.forward(inputs, a_prev)
    grads = rnn.backward(inputs, a, y_pred, targets)
    if grads.keys() != rnn.parameters().keys():
        names = sorted(grads.keys() ^ rnn.parameters().keys())
        raise Mistake(f"in one of parameters() and backward() only: {', '.join(names)}")
    differences = {}
    for name, w in rnn.parameters().items():
        measured = np.zeros_like(w)
        for place in np.ndindex(w.shape):
            value = w[place]
            for step in (change, -change):
                w[place] = value + step
                _, y_pred = rnn.forward(inputs, a_prev)
                measured[place] += rnn.loss(y_pred, targets) / (2 * step)  # the second: minus
            w[place] = value
        largest = max(np.abs(measured).max(), change)  # in case all of them are 0
        differences[name] = float(np.abs(grads[name] - measured).max() / largest)
    return differences


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
# Run: where a training stands, and the rows that it prints

HEADER = "iteration  smooth  train  valid s left  sample"


class Run:
    """Where a training run stands: everything but the network.

    iteration counts the updates, seconds the time since the first (with rows and reports, without
    pauses), and losses has the loss of each, in nats per character; smooth_loss is their moving
    average, which starts at that of guessing. history has a row [iteration, training loss,
    validation loss] for every validation. The run ends at max_iters or threshold; eval_interval is
    the iterations from row to row. best holds the weights with the lowest validation loss, those of
    best_iteration (the latest, if nothing is held out). m and v are what the optimiser remembers,
    a_prev (B, H) is the hidden state before the next batch, and stop = True ends training after the
    iteration under way, until it is False again.
    """

    def __init__(self, rnn):
        self.iteration = 0
        self.seconds = 0.0
        self.guessing = math.log(rnn.vocab_size)  # the loss of V characters that are equally likely
        self.smooth_loss = self.guessing
        self.losses = []
        self.history = []
        self.best = deepcopy(rnn.parameters())
        self.best_iteration = 0
        self.m = {name: np.zeros_like(w) for name, w in self.best.items()}
        self.v = deepcopy(self.m)
        self.a_prev = np.zeros(0)  # no stream has been read yet
        self.max_iters = 2500
        self.threshold = 0.0
        self.eval_interval = 500
        self.stop = False

    def plan(self, max_iters=None, threshold=None):
        """Set where the run ends; Mistake for too few iterations or a threshold above guessing."""
        if max_iters is not None:
            if max_iters < self.iteration:
                raise Mistake(f"the run is at iteration {self.iteration}: {max_iters} is too few")
            self.max_iters = max_iters
        if threshold is not None:
            if not 0 <= threshold < self.guessing:
                raise Mistake(
                    f"the threshold is {threshold} nats per character: "
                    f"take one below {self.guessing:.3f}, which guessing costs"
                )
            self.threshold = threshold

    def add_loss(self, loss):
        """Record the loss of an iteration."""
        self.losses.append(loss)
        self.smooth_loss += 0.01 * (loss - self.smooth_loss)

    def validate(self, rnn, reader):
        """Add a row to history, and keep the weights if they are the best so far."""
        last_row = self.history[-1][0] if self.history else 0
        recent = self.losses[last_row:] or [math.nan]
        train_loss = sum(recent) / len(recent)
        val_ids = reader.val_ids[:100_000]
        val_loss = rnn.evaluate(val_ids) if len(val_ids) else math.nan
        # Where nothing is held out val_loss is nan, which no row is below: the latest are the best.
        if not any(row[2] <= val_loss for row in self.history):
            self.best = deepcopy(rnn.parameters())
            self.best_iteration = self.iteration
        self.history.append([self.iteration, train_loss, val_loss])

    def ended(self):
        """True after max_iters iterations, or when the smooth loss has fallen to threshold."""
        return self.iteration >= self.max_iters or self.smooth_loss <= self.threshold

    def row_is_due(self):
        """True at iterations 100 and 250, and at every eval_interval-th."""
        return self.iteration in (100, 250) or self.iteration % self.eval_interval == 0

    def just_validated(self):
        """True when the last row of history is of this iteration."""
        return self.history[-1][0] == self.iteration


def say(text):
    """Print a text at once; what the output cannot show, or could steer a terminal, is replaced."""
    if sys.stdout.isatty():
        text = re.sub("[\0-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), end="", flush=True)


def print_progress(rnn, reader, run):
    """Print a row where a run has just validated, else, on a terminal, a line that is replaced."""
    each = run.seconds / run.iteration if run.iteration else math.nan
    left = each * (run.max_iters - run.iteration)
    if run.just_validated():
        iteration, train_loss, val_loss = run.history[-1]
        if iteration == 0:
            print(HEADER)
        losses = f"{run.smooth_loss:>8.3f}{train_loss:>7.3f}{val_loss:>7.3f}"
        numbers = f"{iteration:>9,}{losses}{left:>7,.0f}".replace("nan", "  -")
        text = rnn.predict(reader, opening(reader.chars), 40, temperature=0.7, seed=0)
        say(f"{numbers}  {' '.join(text.split())}\n")
    elif sys.stdout.isatty() and run.iteration % 10 == 0:
        line = f"{run.iteration:>9,}  loss {run.losses[-1]:.3f}  {left:,.0f} s left"
        print(f"{line:40}", end="\r", flush=True)


def picture_of(run, ending):
    """The losses of a run over its iterations: the bytes of a picture, as png, svg or pdf."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    iterations, train_losses, val_losses = np.reshape(run.history, (-1, 3)).T
    axes.plot(range(1, run.iteration + 1), run.losses, "C0", linewidth=0.2, label="each iteration")
    axes.plot(iterations, train_losses, "C0o-", label="training, mean since the last point")
    axes.plot(iterations, val_losses, "C1o-", label="validation")
    axes.set(xlabel="iteration", ylabel="loss (nats per character)")
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format=ending)
    return picture.getvalue()


# --------------------------------------------------------------------------------------------------
# Checkpoint: all that sampling and an exact resume need, in one .npz file

# Beside the arrays: what it holds of the network, of the reader of its text, and of the run.
KEPT = {
    "rnn": ["hidden_size", "vocab_size", "seq_length", "learning_rate", "optimizer", "dtype"],
    "reader": [
        "path",
        "seq_length",
        "batch_size",
        "val_fraction",
        "chars",
        "shuffle_lines",
        "checksum",
    ],
    "run": [
        "iteration",
        "seconds",
        "smooth_loss",
        "history",
        "best_iteration",
        "max_iters",
        "threshold",
        "eval_interval",
    ],
}


def arrays_of(rnn, run):
    """The arrays in a checkpoint by their names: Wax, best_Wax, m_Wax, v_Wax, and so on."""
    arrays = {}
    parts = {"": rnn.parameters(), "best_": run.best, "m_": run.m, "v_": run.v}
    for part, values in parts.items():
        for name, array in values.items():
            arrays[part + name] = array
    return arrays


def save_checkpoint(path, rnn, run, reader, over=None):
    """Save a network, its run, and where its text is; returns the name of the file.

    It is the first free one of path, path-2, path-3, ..., and path itself only where the file that
    stands there is the one that over marks.
    """
    about = {}
    for part, owner in (("rnn", rnn), ("reader", reader), ("run", run)):
        about[part] = {name: getattr(owner, name) for name in KEPT[part]}
    text = json.dumps(about, default=np.generic.item)  # numbers may be those of NumPy
    arrays = arrays_of(rnn, run) | {"a_prev": run.a_prev, "losses": run.losses}
    file = io.BytesIO()
    np.savez(file, about=text, **arrays)
    return write_whole(path, file.getvalue(), over)


def load_checkpoint(path, model=RNN):
    """A network of a class, its run, and what is known of its text: about.chars, and so on.

    The network has the weights that it had reached: rnn.use(run.best) takes the best. Nothing in
    the file is executed. Raises Mistake for a file that is damaged, of another kind, or without the
    parameters of such a network.
    """
    arrays, about = read_checkpoint(path)
    rnn = model(**about["rnn"])
    run = Run(rnn)
    for name, value in about["run"].items():
        setattr(run, name, value)
    places = arrays_of(rnn, run)
    if wrong := dict(layout(places).items() ^ layout(arrays).items()):
        names = f"{model.__name__}: see {', '.join(sorted(wrong))}"
        raise Mistake(f"{path} is not of a network of class {names}")
    for name, place in places.items():
        place[...] = arrays[name]
    return rnn, run, SimpleNamespace(**about["reader"])


def layout(arrays):
    """The shape and the type of each array of a dict."""
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}


def read_checkpoint(path):
    """The arrays in a file, and a dict of all else; Mistake for what cannot be a checkpoint."""
    data = Path(path).read_bytes()
    try:
        if zipfile.ZipFile(io.BytesIO(data)).testzip():  # np.load does not see a changed shape
            raise ValueError("a checksum is wrong")
        arrays = dict(np.load(io.BytesIO(data), allow_pickle=False))
        about = json.loads(str(arrays.pop("about")))
        if {part: list(names) for part, names in about.items()} == KEPT:
            check_sizes(about["rnn"], about["reader"], len(data))
            about["run"]["losses"] = arrays.pop("losses").tolist()
            about["run"]["a_prev"] = arrays.pop("a_prev")
            return arrays, about
    except Exception as error:  # damaged bytes can raise almost anything
        raise Mistake(f"{path} is damaged, or no checkpoint of char_rnn.py: {error!r}") from error
    raise Mistake(f"{path} is of an earlier version of char_rnn.py: train again")


def check_sizes(rnn, reader, size):
    """ValueError for sizes that cannot be those of a checkpoint of so many bytes."""
    sizes = [rnn["hidden_size"], reader["seq_length"], reader["batch_size"]]
    are_whole = all(type(number) is int and number > 0 for number in sizes)
    if not are_whole or sizes[0] ** 2 > size or rnn["vocab_size"] != len(reader["chars"]):
        raise ValueError("its sizes do not fit")


def write_whole(path, data, over=None):
    """Write bytes to a file whole or not at all, and return its name.

    They go to a temporary file beside it, which is then renamed. A link stays a link. The file that
    stands at path is replaced only if it is the one that over marks; else the first free name of
    path, path-2, path-3, ... is taken.
    """
    real = os.path.realpath(path)
    temporary = f"{real}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if over is None or mark_of(path) != over:
            real = path = free_name(path)
        os.replace(temporary, real)
        return path
    except OSError as error:
        error.filename = path  # and not the temporary one
        raise
    finally:
        Path(temporary).unlink(missing_ok=True)


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


def mark_of(path):
    """What tells a file from one that takes its place; None where there is none."""
    try:
        status = os.stat(path)
        return status.st_ino, status.st_mtime_ns
    except FileNotFoundError:
        return None


def newest():
    """The newest char_rnn*.npz in this folder; its name is printed."""
    path = max(Path().glob("char_rnn*.npz"), key=os.path.getmtime, default=None)
    if not path:
        raise Mistake("there is no char_rnn*.npz here: train first, or name a checkpoint")
    print(f"from {path}", file=sys.stderr)
    return str(path)


# --------------------------------------------------------------------------------------------------
# Command line

DATA = Path(__file__).resolve().parent / "data" / "fables.txt"


@dataclass
class Session:
    """A run on the command line, with its files: it trains, prints, saves, and stops at Ctrl-C."""

    rnn: RNN
    reader: DataReader
    run: Run
    path: str
    plot: str
    mark: tuple = None  # of the file at path, once that is of this run

    def learn(self):
        """Train until the end or Ctrl-C, saving at every row; returns the exit status."""
        signal.signal(signal.SIGINT, self.stop)
        self.save()  # what cannot be written shows before training
        print_heading(self.path, self.rnn, self.reader, self.run)
        self.rnn.train(self.reader, report=self.report, run=self.run)
        if self.run.stop and not self.run.ended():
            self.save()
            print(f"\nstopped after iteration {self.run.iteration:,}, saved in {self.path}")
            if os.path.isfile(self.reader.path):  # a pipe cannot be read again
                print(f"to go on:  {command_line('resume', self.path)}")
            return 130
        print_result(self.path, self.rnn, self.reader, self.run)
        return 0

    def stop(self, number, frame):
        """Handle Ctrl-C: training ends after this iteration; a second Ctrl-C ends at once."""
        self.run.stop = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def report(self, run):
        """Print progress, and save where the run has just validated."""
        print_progress(self.rnn, self.reader, run)
        if run.just_validated():
            self.save()

    def save(self):
        """Write the picture and the checkpoint: in a free name if another program wrote there."""
        self.draw_picture()
        path = save_checkpoint(self.path, self.rnn, self.run, self.reader, self.mark)
        if self.mark and path != self.path:
            print(f"{self.path} was changed by another program: going on in {path}")
        self.path = path
        self.mark = mark_of(path) or "taken away at once"

    def draw_picture(self):
        """Write the picture of the losses, if one is wanted."""
        if not self.plot:
            return
        if os.path.realpath(self.plot) in map(os.path.realpath, (self.reader.path, self.path)):
            raise Mistake(f"--plot {self.plot} is a file of this run: name another")
        if not self.plot.endswith((".png", ".svg", ".pdf")):
            raise Mistake(f"--plot must end in .png, .svg or .pdf, not {self.plot}")
        try:
            picture = picture_of(self.run, self.plot[-3:])
        except ImportError as error:
            raise Mistake(f"--plot needs matplotlib: pip install matplotlib ({error})") from None
        write_whole(self.plot, picture, over=mark_of(self.plot))


def print_heading(path, rnn, reader, run):
    """Print what is trained on what, how often it will be read, and where the run stands."""
    size = sum(w.size for w in rnn.parameters().values())
    print(
        f"{Path(reader.path).name}, {rnn.hidden_size} hidden units, {size:,} parameters\n"
        f"{len(reader.train_ids):,} characters to train on, read "
        f"{run.max_iters / reader.batches:.1f} times in {run.max_iters:,} iterations\n"
        f"{len(reader.val_ids):,} characters held out to validate\n"
        f"losses are in nats per character; guessing among {rnn.vocab_size} costs "
        f"{run.guessing:.3f}\n"
        f"saving in {path}\n"
    )
    if run.ended():
        print(f"the run has ended at iteration {run.iteration:,}")
    elif run.history:
        print(HEADER)


def print_result(path, rnn, reader, run):
    """Print how good the best weights are, and what they write."""
    rnn.use(run.best)
    if len(reader.val_ids):
        nats = rnn.evaluate(reader.val_ids)
        print(
            f"\nvalidation loss {nats:.4f} nats per character, perplexity {math.exp(nats):.2f},\n"
            f"on the {len(reader.val_ids):,} characters held out, with the weights of iteration "
            f"{run.best_iteration:,}"
        )
    if run.best_iteration == 0:
        print(
            "\nNo row was better than the first: nothing was learned that holds for what is held\n"
            "out. Try a lower --learning-rate, --shuffle-lines or --val-fraction 0. The weights\n"
            "that were reached are not lost: sample --last, test --last.\n"
        )
    text = rnn.predict(reader, opening(reader.chars), 300, temperature=0.7, seed=0)
    say(f"{text}\n\nfor more text:\n{command_line('sample', path)}\n")


def command_line(command, path):
    """A command as one types it."""
    if path.startswith("-"):  # which would be taken for a flag
        path = f"./{path}"
    return f"python {shlex.join([sys.argv[0], command, path])}"


def train_command(args):
    """Start a new run on a text, in a checkpoint of its own."""
    if args.text == DATA and not DATA.exists():
        raise Mistake("give a text: python char_rnn.py train my.txt")
    chars = None
    if args.init_from:
        model, model_run, about = load_checkpoint(args.init_from)
        chars = about.chars
        args.hidden_size = model.hidden_size
    reader = DataReader(
        args.text, args.seq_length, args.batch_size, args.val_fraction, chars, args.shuffle_lines
    )
    rnn = RNN(
        args.hidden_size,
        reader.vocab_size,
        args.seq_length,
        args.learning_rate,
        args.optimizer,
        args.seed,
    )
    if chars:
        rnn.use(model_run.best)
    run = Run(rnn)
    run.plan(args.max_iters, args.threshold)
    run.eval_interval = args.eval_interval
    return Session(rnn, reader, run, args.checkpoint, args.plot).learn()


def resume_command(args):
    """Go on with the run of a checkpoint as if it had not been stopped, or to more iterations."""
    path = args.checkpoint or newest()
    mark = mark_of(path)
    rnn, run, about = load_checkpoint(path)
    if args.text:
        about.path = args.text
    reader = DataReader(**vars(about))
    run.plan(args.max_iters)
    return Session(rnn, reader, run, path, args.plot, mark).learn()


def trained(args):
    """The network of a checkpoint, with its best or its last weights, and what its text is."""
    rnn, run, about = load_checkpoint(args.checkpoint or newest())
    if not args.last:
        rnn.use(run.best)
    return rnn, about


def sample_command(args):
    """Print new text as it is drawn: so many characters after a start, or so many lines."""
    rnn, about = trained(args)
    before = opening(about.chars) + args.start
    rnn.predict(about, before, 1, args.temperature)  # a mistake shows before anything is written
    ids = encode(before, about.chars)
    rng = np.random.default_rng(args.seed)
    for _ in range(args.lines or 1):
        say(args.start)
        drawn = rnn.draw(ids, np.zeros(rnn.state_size), args.temperature, rng)
        for ix in islice(drawn, args.length):
            char = about.chars[ix]
            if args.lines and char == "\n":
                break
            say(char)
        say("\n")


def test_command(args):
    """Print how well a model predicts a text, as a whole or line by line."""
    rnn, about = trained(args)
    text = read_text(args.text)
    if zlib.crc32(text.encode()) == about.checksum:
        print("the model was trained on this text", file=sys.stderr)
    if unknown := set(text) - set(about.chars):
        print(f"left out, as the model never saw them: {names_of(unknown)}", file=sys.stderr)
        text = "".join(char for char in text if char not in unknown)
    if args.lines:
        for line in io.StringIO(text):
            nats = rnn.evaluate(encode("\n" + line, about.chars))
            say(f"{nats:7.3f}  {line.rstrip()}\n")
        return
    nats = rnn.evaluate(encode(text, about.chars))
    print(
        f"{nats:.4f} nats ({nats / math.log(2):.4f} bits) per character\n"
        f"perplexity {math.exp(nats):.2f}; guessing would have {rnn.vocab_size}"
    )


def whole(text, least=1):
    """A whole number, from least to a billion."""
    number = int(text) if text.isdecimal() else -1
    if not least <= number <= 10**9:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least} on, not {text:.40}")
    return number


natural = partial(whole, least=0)


def add_train(train):
    """The arguments of the command train."""
    train.set_defaults(run=train_command)
    add = train.add_argument
    add("text", nargs="?", default=DATA, help="UTF-8 text; - is standard input")
    size = train.add_mutually_exclusive_group()
    size.add_argument("--hidden-size", type=whole, default=256, help="hidden units (256)")
    size.add_argument("--init-from", help="checkpoint whose weights and characters to start from")
    add("--seq-length", type=whole, default=32, help="steps of backpropagation (32)")
    add("--batch-size", type=whole, default=16, help="streams of text read side by side (16)")
    add("--optimizer", default="adam", choices=OPTIMIZERS, help="update rule (adam)")
    add("--learning-rate", type=float, help="its peak, after the warm-up (the optimiser's own)")
    add("--max-iters", type=whole, default=2500, help="iterations, one update each (2500)")
    add("--threshold", type=float, default=0.0, help="stop at this smooth loss (0: never)")
    add("--eval-interval", type=whole, default=500, help="iterations from row to row (500)")
    add("--val-fraction", type=float, default=0.1, help="share of the text held out (0.1)")
    add("--shuffle-lines", action="store_true", help="in another order first: for lists of names")
    add("--seed", type=natural, default=0, help="of the random numbers (0)")
    add("--checkpoint", default="char_rnn.npz", help="file to save in, or NAME-2.npz, and so on")
    add("--plot", help="file for a picture of the losses; needs matplotlib")


def add_others(resume, sample, test):
    """The arguments of the other commands."""
    resume.set_defaults(run=resume_command)
    resume.add_argument("checkpoint", nargs="?", help="checkpoint (the newest char_rnn*.npz)")
    resume.add_argument("text", nargs="?", help="its text, if it is elsewhere now")
    resume.add_argument("--max-iters", type=whole, help="in all; the rate rises again past the end")
    resume.add_argument("--plot", help="file for a picture, as in train")
    sample.set_defaults(run=sample_command)
    sample.add_argument("checkpoint", nargs="?", help="trained model (the newest char_rnn*.npz)")
    sample.add_argument("--start", default="", help="text to go on from")
    sample.add_argument("--length", type=natural, default=400, help="characters to draw (400)")
    sample.add_argument(
        "--lines", type=whole, default=0, help="so many lines, each of --length at most"
    )
    sample.add_argument(
        "--temperature", type=float, default=1.0, help="under 1 tamer, over 1 wilder (1)"
    )
    sample.add_argument("--seed", type=natural, help="of the random numbers (another each time)")
    test.set_defaults(run=test_command)
    test.add_argument("checkpoint", help="trained model")
    test.add_argument("text", help="UTF-8 text; - is standard input")
    test.add_argument("--lines", action="store_true", help="nats per character before each line")
    for command in (sample, test):
        command.add_argument("--last", action="store_true", help="the last weights, not the best")


def parse(argv):
    """The arguments of the command line; a command that is left out is train."""
    meaning = "A character-level recurrent neural network, from scratch in NumPy."
    parser = argparse.ArgumentParser(prog="char_rnn.py", description=meaning)
    commands = parser.add_subparsers(title="commands")
    add_train(commands.add_parser("train", help="learn from a text (also without a command)"))
    add_others(
        commands.add_parser("resume", help="go on with a run that was stopped, in its own file"),
        commands.add_parser("sample", help="write text with a trained model"),
        commands.add_parser("test", help="measure how well a model predicts a text"),
    )
    if not argv or argv[0] not in (*commands.choices, "-h", "--help"):
        argv = ["train", *argv]
    return parser.parse_args(argv)


def main(argv):
    """Run the command line; the exit status is 2 after a mistake, told in one line."""
    try:
        args = parse(argv)
        return args.run(args)
    except KeyboardInterrupt:
        return 130
    except (Mistake, OSError, MemoryError) as error:
        print(f"char_rnn.py: error: {str(error) or 'out of memory'}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # exit silently when "| head" is done
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")
    sys.exit(main(sys.argv[1:]))

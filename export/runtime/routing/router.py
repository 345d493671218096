"""Asks router.onnx how likely each scale is to answer right, and chooses on the terms that the caller names.

Letters: K scales that the router was fitted for, k scales on offer. A bundle may offer scales that the router was not
fitted for, as long as they lie between two that it was: the graph interpolates the log odds over log m.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.runtime.backends.onnx import Device
from export.runtime.errors import MvlmError
from export.runtime.manifest import RouterFacts
from export.runtime.views.scale import ScaleWord, tokens_said

from .offered import offered_scales, sizes_of, with_tiles
from .policy import DEAREST_PRICE, NO_LOOK, Policy, Seen, escalations, interpolate, is_strange, priced_at
from .reading import Read, read_patches
from .reasons import chosen_reason, strange_reason
from .router_graph import NAMES, open_graph, read_metadata
from .settled import settle, settle_within

Array = NDArray[np.float32]

# So many settled questions are remembered; what stands in a cache makes few kinds of them.
_MOST_SETTLED = 1000


@dataclass(frozen=True)
class Terms:
    """On which terms to choose. Of `price`, `budget` and `within` at most one is named; none takes the router's own.

    Attributes:
        price: what one unit of normalised cost is worth in probability of a right answer.
        budget: the mean cost of a question, in the router's unit; turned into a price on validation rows.
        within: the loss against the finest scale that was bounded when the router was fitted, as 0.01.
        cap: the most that one question may cost, in the router's unit.
        least_probability: scales that are less likely right are left out, as long as one is not.
    """

    price: float | None = None
    budget: float | None = None
    within: float | None = None
    cap: float | None = None
    least_probability: float | None = None

    def __post_init__(self) -> None:
        named = [name for name in ("price", "budget", "within") if getattr(self, name) is not None]
        if len(named) > 1:
            raise MvlmError(f"{' and '.join(named)} cannot both be named: each decides what is spent", code="bad-terms")
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise MvlmError(f"the {_words(field.name)} is {value}: give a number from 0 up", code="bad-price")
        for name in ("within", "least_probability"):
            if (getattr(self, name) or 0) > 1:
                raise MvlmError(f"the {_words(name)} is {getattr(self, name)}: give one from 0 to 1", code="bad-terms")


@dataclass(frozen=True)
class Choice:
    """A scale and why.

    Attributes:
        scale: a number of tokens, or with tiles a word such as 16@4.
        probabilities: how likely each scale on offer is to answer right.
        reason: the choice in a person's words.
        cost: of the scale, in the router's unit.
        price: that was applied, the terms' or the router's own.
        p_value: the share of validation questions that were at least as strange as this one; None where nothing was
            chosen, as one scale is worth more for every question, and `probabilities` are those of all questions.
        out_of_distribution: whether that is so small that the finest allowed scale was taken instead.
        terms: on which was chosen.
    """

    scale: Any
    probabilities: dict[Any, float]
    reason: str
    cost: float
    price: float
    p_value: float | None
    out_of_distribution: bool
    terms: Terms


class Router:
    """The predictor inside a bundle, over the scales that the bundle offers."""

    def __init__(
        self, path: Path, facts: RouterFacts, offered: Sequence[ScaleWord], device: Device | None, graph: Any = None,
        *, reader: Any = None, costs_replaced: bool = False, overhead: float = 0.0,
    ) -> None:  # fmt: skip
        """`device` None walks the graph in numpy, for a machine without onnxruntime. `overhead` is what choosing itself
        costs, a part of each scale's cost."""
        self.facts, self.costs_replaced, self.overhead = facts, costs_replaced, overhead
        self.offered = offered_scales(facts.scales, offered)
        self._path, self._device = path, device
        self._graph = graph or open_graph(path, device)
        self._reader = reader or (open_graph(path.with_name(facts.reader), device) if facts.reader else None)
        self._known = read_metadata(self._graph, path)
        self._names = NAMES[int(self._known["format_version"])]
        self._fitted = tuple(float(size) for size in self._known.get("sizes", self._known["scales"]))  # (K,)
        self._sizes = sizes_of(self.offered, self._known["scales"], self._fitted)  # (k,)
        sizes = sizes_of(facts.scales, self._known["scales"], self._fitted)
        self.costs = np.interp(self._sizes, sizes, facts.costs).astype(np.float32)  # (k,)
        self._unit_cost = float(max(facts.costs))  # the router's own dearest scale stays the unit of the price
        self._policy = Policy(self.costs, self._unit_cost, self._known["escalation"])
        self._settled: dict[tuple[object, ...], int | None] = {}
        self._prices: dict[float, float] = {}  # of budgets

    def with_costs(self, costs: Mapping[Any, float], unit: str, overhead: float = 0.0) -> Router:
        """The same router where each scale on offer costs something else, as milliseconds that were measured; of each
        cost `overhead` is what choosing takes.

        A price is in parts of the dearest cost, so the default price is read anew, by the loss that it was read by.
        Raises `MvlmError` unless every scale on offer has a cost above 0 that is not below that of a coarser one.
        """
        missing = [m for m in self.offered if m not in costs]
        if missing:
            raise MvlmError(f"no cost is given for {', '.join(map(str, missing))} tokens: give one for each scale")
        scales = tuple(m for m in self.offered if m in costs) if with_tiles(self.offered) else tuple(sorted(costs))
        values = tuple(float(costs[m]) for m in scales)
        require_costs(values)
        facts = replace(self.facts, scales=scales, costs=values, cost_unit=unit)
        replaced = self._with(facts, overhead)
        if "default_loss" not in self._known:  # routers of before do not say what their price was read by
            return replaced
        price = replaced._policy.price_losing(replaced._validation, self._known["default_loss"])
        facts = replace(facts, default_price=price)
        return self._with(facts, overhead)

    def _with(self, facts: RouterFacts, overhead: float) -> Router:
        """The same graphs, other costs."""
        return Router(
            self._path, facts, self.offered, self._device, graph=self._graph, reader=self._reader, costs_replaced=True,
            overhead=overhead,
        )  # fmt: skip

    def settled(
        self, terms: Terms, costs: NDArray[np.floating] | None = None, overhead: float | None = None
    ) -> Choice | None:
        """The one scale that is worth more at this price than choosing for each question, without looking at it.

        `costs` (k,) are what the scales cost this question and `overhead` what of that is choosing, where these are not
        what they usually are. A budget comes down to a price, or to one scale within it that is right more often. None
        where choosing is worth more, or its cost is not known; and where terms need each question to be looked at: a
        loss that was bounded for choosing, a least probability.
        """
        if self.overhead <= 0 or terms.within is not None or terms.least_probability is not None:
            return None
        self.require(terms)
        price, cap = self.price(terms), math.inf if terms.cap is None else terms.cap
        policy = self._policy if costs is None else replace(self._policy, cost=costs)
        choosing = self.overhead if overhead is None else overhead
        within = terms.budget if costs is None and terms.cap is None else None
        key = price, cap, within, choosing, tuple(np.asarray(policy.cost).tolist())
        if key not in self._settled:
            if len(self._settled) >= _MOST_SETTLED:
                self._settled.clear()
            seen = self._validation
            self._settled[key] = (
                settle(policy, seen, price, choosing, cap) if within is None
                else settle_within(policy, seen, price, choosing, within)
            )  # fmt: skip
        at = self._settled[key]
        if at is None:
            return None
        at_this = "at this price worth more" if within is None else "within this budget right more often"
        usual = self._validation.probability.mean(axis=0)
        reason = f"{tokens_said(self.offered[at])}: {at_this} for every question than choosing for each"
        return Choice(
            scale=self.offered[at],
            probabilities={m: float(p) for m, p in zip(self.offered, usual, strict=True)},
            reason=f"{reason}, which takes {choosing:.3g} {self.facts.cost_unit}",
            cost=float(policy.cost[at]) - choosing,
            price=price, p_value=None, out_of_distribution=False, terms=terms,
        )  # fmt: skip

    def look(self, words: Array) -> Array | None:
        """What a router that reads pictures makes of one, once for all questions: (P, D) -> (cells, channels).

        None of a router that does not.
        """
        if self._reader is None:
            return None
        found: Array = self._reader.run(["picture"], {"patches": read_patches(words)[None]})[0][0]
        return found

    def require(self, terms: Terms) -> None:
        """Raise `MvlmError` for terms that cannot be met: a budget or cap below the cheapest, no such bound."""
        cheapest, dearest, unit = float(self.costs.min()), float(self.costs.max()), self.facts.cost_unit
        cheapest -= self.overhead  # without choosing, at one scale for all
        if terms.budget is not None and not cheapest <= terms.budget <= dearest:
            raise MvlmError(
                f"a budget of {terms.budget:g} {unit} cannot be met: the scales cost {cheapest:g} to {dearest:g}",
                code="bad-terms",
            )
        if terms.cap is not None and terms.cap < cheapest:
            raise MvlmError(f"a cap of {terms.cap:g} {unit} allows no scale: the cheapest costs {cheapest:g}",
                            code="bad-terms")  # fmt: skip
        if terms.within is not None:
            self._bounded(terms.within)

    def price(self, terms: Terms) -> float:
        """The price that terms come down to."""
        if terms.price is not None:
            return terms.price
        if terms.within is not None:
            return self._bounded(terms.within)
        if terms.budget is not None:
            return self._price_for(terms.budget)
        return self.facts.default_price if terms.least_probability is None else DEAREST_PRICE

    def probabilities(self, image: Array, question: Array, read: Read | None = None) -> Array:
        """P(right) at each scale on offer: (d_image,), (d_question,) -> (k,)."""
        return self._ask(image, question, read)[0]

    def choose(
        self, image: Array, question: Array, terms: Terms = Terms(), read: Read | None = None,
        costs: NDArray[np.floating] | None = None,
    ) -> Choice:  # fmt: skip
        """The best scale on offer, for features as `features.py` makes them: (d_image,), (d_question,). A router that
        reads pictures wants the picture and the question too. `costs` (k,) are what the scales cost this question,
        where that is not what they usually do.

        A question or picture unlike those of validation takes the finest scale that the cap allows. Raises `MvlmError`
        for terms that cannot be met and for features that are no numbers.
        """
        self.require(terms)
        price = self.price(terms)
        probability, p_value = self._ask(image, question, read)
        out_of_distribution = bool(is_strange(p_value, self._known["least_p_value"]))
        seen = Seen(probability[None].astype(np.float64), np.array([out_of_distribution]))
        cap = math.inf if terms.cap is None else terms.cap
        policy = self._policy if costs is None else replace(self._policy, cost=costs)
        chosen = int(policy.first(seen, price, cap=cap, least_probability=terms.least_probability or 0.0)[0])
        reason = (
            strange_reason(self.offered[chosen], p_value) if out_of_distribution
            else chosen_reason(self.offered, probability, np.asarray(policy.cost), chosen)
        )  # fmt: skip
        return Choice(
            scale=self.offered[chosen],
            probabilities={m: float(p) for m, p in zip(self.offered, probability, strict=True)},
            reason=reason,
            cost=float(policy.cost[chosen]),
            price=price,
            p_value=p_value,
            out_of_distribution=out_of_distribution,
            terms=terms,
        )

    @property
    def looks_again(self) -> bool:
        """Whether looking again paid on validation; `escalate` never does otherwise."""
        return self._known["escalation"] is not None

    def escalate(
        self, choice: Choice, margin: float, *, keeps_cache: bool = False, costs: NDArray[np.floating] | None = None
    ) -> Choice | None:
        """After a cheap answer: the finer scale that is worth an escalation, or None.

        `margin` is by how much the answer's first token was likelier than the next likely one (0..1). An escalation
        costs its scale in full, or only what it adds where the model keeps its cache. A cap counts both looks.
        `costs` (k,) are what the scales cost this question from here on, where that is not what they usually do.
        """
        rule = self._known["escalation"]
        if rule is None or choice.p_value is None or choice.out_of_distribution or choice.scale == self.offered[-1]:
            return None
        at = self.offered.index(choice.scale)
        paid = float(self.costs[at]) if costs is None else choice.cost
        costs = self.costs if costs is None else np.where(np.arange(len(self.offered)) == at, paid, costs)
        probability = np.array([[choice.probabilities[m] for m in self.offered]])  # (1, k)
        cap = None if choice.terms.cap is None else choice.terms.cap / self._unit_cost
        best = int(
            escalations(
                rule, np.array([margin]), probability, np.array([at]), costs / self._unit_cost, choice.price,
                keeps_cache=keeps_cache, cap=cap,
            )[0]
        )  # fmt: skip
        if best == NO_LOOK:
            return None
        scale, cost = self.offered[best], float(costs[best]) + (0.0 if keeps_cache else paid)
        reason = f"{tokens_said(scale)}: looked again, since the first token led by only {margin:.2f} at {choice.scale}"
        return replace(choice, scale=scale, reason=reason, cost=cost)

    def _ask(self, image: Array, question: Array, read: Read | None) -> tuple[Array, float]:
        """What the graph says of a question: probability (k,) and the p-value. `policy` decides, here as everywhere."""
        for name, values in (("image", image), ("question", question)):
            if not np.isfinite(values).all():
                raise MvlmError(f"the {name} features hold {_first_bad(values)}: the picture or the model is broken",
                                code="bad-features")  # fmt: skip
        feeds = {
            "image": image[None],  # (1, d_image)
            "question": question[None],  # (1, d_question)
            "price": _scalar(0.0),
            "cost": self.costs[None] if self._names.cost_rank == 2 else self.costs,  # (1, k) or (k,)
            "num_visual_tokens": np.asarray(self._sizes, np.float32),  # (k,)
        }
        if self._reader is not None:
            if read is None:
                raise MvlmError("this router reads pictures, and was given none: look at the picture with it")
            feeds |= {"picture": read.picture[None], "words": read.question[None]}  # (1, C, 2h), (1, T, D)
        probability, p_value = self._graph.run(["probability", self._names.p_value], feeds)
        return probability[0], float(p_value[0])

    @cached_property
    def _validation(self) -> Seen:
        """Some rows of the fit at the scales on offer, as they were decided by."""
        known, fitted = self._known, self._fitted
        probability = interpolate(
            np.asarray(known["validation"], np.float64).reshape(-1, len(fitted)), fitted, self._sizes
        )
        strange = np.zeros(len(probability), bool)
        strange[known.get("validation_strange", [])] = True
        if known["escalation"] is None:
            return Seen(probability, strange)
        # Margins are known at the fitted scales; one on offer takes that of the nearest.
        near = [int(np.abs(np.log(np.asarray(fitted) / m)).argmin()) for m in self._sizes]
        return Seen(probability, strange, np.asarray(known["validation_margin"])[:, near])

    def _price_for(self, budget: float) -> float:
        """The smallest price at which the rows of the fit cost at most the budget in the mean, as they are decided."""
        priced = self._known.get("priced")
        if priced and not self.costs_replaced and self.offered == tuple(self._known["scales"]):
            return priced_at(priced, budget)
        if budget not in self._prices:
            if len(self._prices) >= _MOST_SETTLED:
                self._prices.clear()
            self._prices[budget] = self._policy.price_for(self._validation, budget)
        return self._prices[budget]

    def _bounded(self, within: float) -> float:
        risk_bounds = {p["within"]: p for p in self._known["risk_bounds"]}
        if within not in risk_bounds:
            has = ", ".join(f"{p:g}" for p in risk_bounds) or "none"
            raise MvlmError(f"the router bounds no loss within {within:g} (it has: {has}): fit with --within",
                            code="bad-terms")  # fmt: skip
        if self.costs_replaced or self.offered != tuple(self._known["scales"]):
            raise MvlmError(
                f"the risk bound of {within:g} is of other costs or scales: name a price, or fit again with these",
                code="bad-terms",
            )
        return float(risk_bounds[within]["price"])


def require_costs(costs: Sequence[float]) -> None:
    """Raise `MvlmError` unless costs, from the coarsest scale to the finest, are above 0 and never fall."""
    rise = all(a <= b for a, b in pairwise(costs))
    if not rise or not all(0 < cost < math.inf for cost in costs):
        raise MvlmError(f"the costs are {list(costs)}: give numbers above 0 that do not fall as the scale rises",
                        code="bad-terms")  # fmt: skip


def require_price(price: float) -> None:
    """Raise `MvlmError` unless `price` is a number from 0 up."""
    Terms(price=price)


def _scalar(value: float) -> Array:
    return np.asarray(value, np.float32)


def _first_bad(values: Array) -> str:
    return str(values[~np.isfinite(values)][0])


def _words(name: str) -> str:
    return name.replace("_", " ")

"""Model, adapter and clients' data of a simulation, ready to train and to measure."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from securefed.config import RunConfig, dump_config
from securefed.crypto.prg import NoiseGenerator
from securefed.engines.checked_gradients import CheckedGradients
from securefed.engines.cohort import (
    EncodeFor,
    clipped_sum_of_sample,
    cyclic_step,
    dp_sgd_step,
    local_delta,
)
from securefed.engines.combining import Combining
from securefed.engines.events import Observer
from securefed.engines.foreseen import GIB, foreseen_memory
from securefed.engines.held_out import held_out_figures
from securefed.engines.kept_parts import KeptParts
from securefed.engines.metering import DeviceMemory, MemoryWatch, ResidentMemory
from securefed.engines.mixed_ranks import MixedRanks, mixed_ranks
from securefed.engines.personal import PersonalParts
from securefed.engines.personal_adapters import PersonalAdapters
from securefed.engines.ranked_model import RankedModel
from securefed.engines.run_plan import RunPlan
from securefed.engines.settings import Settings, check_cohort
from securefed.engines.trainers import built_in_trainer
from securefed.errors import ConfigError, LedgerTampered
from securefed.lora.adapter import (
    adapter_state,
    build_adapter,
    load_adapter_state,
    save_adapter,
    state_hash,
)
from securefed.lora.parts import AdapterParts
from securefed.lora.ranks import section_at
from securefed.privacy.clipping import L2Clip
from securefed.privacy.cyclic import cyclic_batch
from securefed.privacy.policy import PrivacyPolicy
from securefed.training.corpora import Corpus, load_corpus
from securefed.training.data import (
    ClientData,
    Examples,
    chosen_clients,
    client_sizes,
    tokenize_clients,
)
from securefed.training.dp_sgd import filled_micro_batch
from securefed.training.local import load_trainer
from securefed.training.memory import StepMemory
from securefed.training.models import load_model, resolve_device
from securefed.training.untouched import Untouched, own_random_state

_CHECKED_EXAMPLES = 3


class Workbench:
    """Loads everything a run needs; one model serves all simulated clients in turn.

    Args:
        config: the run file.
        cache: where models and corpora are kept.
        offline: fetch nothing.
        observer: told what is being loaded.
        plan: what the run carries out, where it is settled already: its ranks are the adapter's.
        corpus: the clients' texts, in the place of those that ``data.source`` names.
        sizes: of a run between machines: the public size of each client, whose data are elsewhere.
        alone: the data here are one client's, of a larger cohort.

    Raises:
        ConfigError, DataError, FetchError: model, adapter or data are not as they must be.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        cache: Path,
        offline: bool,
        observer: Observer,
        plan: RunPlan | None = None,
        corpus: Corpus | None = None,
        sizes: Mapping[str, int] | None = None,
        alone: bool = False,
    ) -> None:
        self.config = config
        self._observer = observer
        if config.training.threads is not None:
            torch.set_num_threads(config.training.threads)
        self.device = resolve_device(config.training.device)
        if config.training.trainer is not None and sizes is None:  # it runs where the data are
            load_trainer(config.training.trainer, config.training)  # refused now or never
        # The data first: what is wrong with it is found in a second, a model takes longer.
        if corpus is None and sizes is None:
            corpus = self._corpus(cache, offline)
        for note in () if corpus is None else corpus.notes:
            observer.message(f"note: {note}")
        chosen = list(sizes or ()) if corpus is None else chosen_clients(corpus, config.data)
        if not alone:
            check_cohort(config, chosen)
        observer.message(f"loading model {config.model.source} on {self.device}")
        loaded = load_model(
            config.model,
            cache=cache,
            offline=offline,
            device=self.device,
            progress=observer.message,
        )
        self.model_name, self.fingerprint = loaded.name, loaded.fingerprint
        self.tokenizer = loaded.tokenizer
        self.model_bytes = loaded.size
        self.memory: list[MemoryWatch] = [ResidentMemory()]
        if self.device.type == "cuda":
            self.memory.append(DeviceMemory(self.device))
        observer.message(f"weights {loaded.fingerprint}, bound into every round")
        self.clients: dict[str, ClientData] = {}
        if corpus is not None:
            self.clients = tokenize_clients(
                corpus,
                config.data,
                tokenizer=loaded.tokenizer,
                task=config.model.task,
                labels=config.model.labels,
                held_out_windows=config.evaluation.max_windows,
                held_out_tokens=config.evaluation.window_tokens or config.data.window_tokens,
                class_weights=config.training.class_weights,
            )
            sizes = client_sizes(self.clients, config.privacy.unit)
        self.sizes = dict(sizes or {})
        ranks = self._ranks(config, plan)
        # Directions that no slice stands for would never train: the adapter ends before them.
        self._rank = config.lora.rank if ranks is None else ranks.tiers.largest
        section = config.lora if ranks is None else section_at(config.lora, self._rank)
        self.model = build_adapter(loaded.model, section, task=config.model.task)
        self.parts = AdapterParts(self.model, config.lora.sharing)
        self.ranked = RankedModel(self.model, self.parts, ranks)
        self.personal = PersonalParts(self.parts)
        self._foreseen: dict[bool, StepMemory] = {}
        self._most = config.training.micro_batch
        self._made = self.parts.served()
        self.own_adapters = self._own_adapters()
        self.combining = self._combining()
        self._gradients = CheckedGradients(
            self.model, self.parts, task=config.model.task, device=self.device
        )
        self._untouched: Untouched | None = None
        self.saw_non_finite = False
        examples = sum(len(client.train) for client in self.clients.values())
        users = f" of {sum(self.sizes.values()):,} users" if config.privacy.unit == "user" else ""
        observer.message(
            f"{len(self.sizes)} clients, {examples:,} training examples{users}, "
            f"{self.dimension:,} trainable parameters"
        )
        if config.training.client_weights != "uniform":
            observer.message(
                "note: a client counts by its number of examples, which is public here and which "
                "no statement covers"
            )
        if approximated := self.parts.mode.approximated:
            observer.message(f"lora.sharing = {config.lora.sharing!r}: {approximated}")

    def _corpus(self, cache: Path, offline: bool) -> Corpus:
        config, observer = self.config, self._observer
        observer.message(f"loading data {config.data.source}")
        return load_corpus(
            config.data.source,
            cache=cache,
            offline=offline,
            section=config.data,
            labels=config.model.labels,
            progress=observer.message,
        )

    def _ranks(self, config: RunConfig, plan: RunPlan | None) -> MixedRanks | None:
        return mixed_ranks(config, self.sizes) if plan is None else plan.ranks

    def fits(self, config: RunConfig, plan: RunPlan | None) -> bool:
        """Whether the adapter is of the largest rank that stands under a plan."""
        ranks = self._ranks(config, plan)
        return self._rank == (config.lora.rank if ranks is None else ranks.tiers.largest)

    def again(
        self, config: RunConfig, observer: Observer, plan: RunPlan | None = None
    ) -> Workbench:
        """The same model and clients for another run, the adapter as it was first made.

        Args:
            config: what this workbench was loaded from, but for privacy, budget and output.
            observer: told what happens from now on.
            plan: what that run carries out; one that this workbench ``fits``.

        Returns:
            A workbench that shares the model with this one: only one of them can be at work.
        """
        self._gradients.close()  # a run's hooks go with it; another opens its own
        other = copy.copy(self)
        other.config, other._observer = config, observer
        other.ranked = RankedModel(self.model, self.parts, self._ranks(config, plan))
        other.begin_anew()
        return other

    def begin_anew(self) -> None:
        """The adapter as it was first made, every client's own part too."""
        self.parts.load_served(self._made)
        self.personal.forget()
        self.own_adapters = self._own_adapters()
        self.combining = self._combining()

    def _own_adapters(self) -> PersonalAdapters | None:
        if self.config.personal.kind == "none":
            return None
        return PersonalAdapters(self.model, self.config, self.device, micro_batch=self._most)

    def _combining(self) -> Combining:
        return Combining(self.config.training, seed=self.config.lora.seed, dimension=self.dimension)

    @property
    def gradients_checked(self) -> bool:
        """Whether ``check_gradients`` found per-example gradients right."""
        return self._gradients.checked

    # -- the adapter -----------------------------------------------------------------------

    @property
    def dimension(self) -> int:
        """d, the length of what travels, before it is cut or anything stands behind it."""
        return self.parts.dimension

    def begin_round(self, number: int) -> None:
        """Let train what travels in round ``number``."""
        self.parts.begin(number)
        self.personal.forget_new()
        self.combining.state.forget_new()
        if not self.parts.freezes_the_same_always:
            self._untouched = None

    def take_over(self, survivors: Collection[str], charged: Collection[str]) -> None:
        """A round was summed: what clients keep is from now on what they made of it in that one.

        Args:
            survivors: clients in the sum, by which state of the sum's own moves on.
            charged: those that charged the round, which alone keep their part of the adapter.
        """
        self.personal.take_over(charged)
        self.combining.state.take_over(survivors)

    @property
    def kept(self) -> KeptParts:
        """What clients keep from round to round, all of a client's together."""
        return KeptParts(self.personal, self.combining.state)

    def save_kept(self, folder: Path, clients: tuple[str, ...], number: int) -> None:
        """Keep what the clients whose data are here keep after ``number`` rounds."""
        clients = tuple(name for name in clients if name in self.clients)
        self.personal.save(folder, clients, number)
        self.combining.state.save(folder, clients, number)

    def load_kept(self, folder: Path, clients: tuple[str, ...], number: int) -> None:
        """Take back what :meth:`save_kept` kept.

        Raises:
            LedgerTampered: a file is missing, or is not of this run.
        """
        clients = tuple(name for name in clients if name in self.clients)
        self.personal.load(folder, clients, number)
        self.combining.state.load(folder, clients, number)

    def adapter_hash(self) -> bytes:
        """SHA-256 over the whole adapter, the frozen part included."""
        return bytes.fromhex(state_hash(adapter_state(self.model)))

    def model_hash(self) -> bytes:
        """What a round binds: base weights, all that clients are sent, and the whole run file."""
        parts = (
            bytes.fromhex(self.fingerprint),
            self.ranked.adapter_hash() or self.adapter_hash(),
            bytes.fromhex(self.parts.fingerprint()),
            hashlib.sha256(dump_config(self.config).encode()).digest(),
            self.combining.fingerprint(),
        )
        return hashlib.sha256(b"securefed/1/model" + b"".join(parts)).digest()

    def save_initial(self, path: Path) -> None:
        """Keep the adapter as the server made it: the frozen part is made once, then handed on."""
        save_file(adapter_state(self.model), path)

    def load_initial(self, path: Path) -> None:
        """Take back what ``save_initial`` kept.

        Raises:
            LedgerTampered: the file is missing or does not fit the model.
        """
        try:
            load_adapter_state(self.model, load_file(path))
        except (OSError, SafetensorError, ConfigError) as error:
            raise LedgerTampered(f"{path}: {error}") from None

    def save_adapter(self, folder: Path, rank: int | None = None) -> None:
        """Write the adapter in PEFT's format, under a portable base name.

        Args:
            folder: is made.
            rank: the first directions alone (``lora.adapter.save_adapter``).
        """
        save_adapter(
            self.model,
            folder,
            base_model_name=self.model_name,
            base_fingerprint=self.fingerprint,
            sharing=self.config.lora.sharing,
            section=self.config.lora,
            task=self.config.model.task,
            rank=rank,
        )

    # -- training --------------------------------------------------------------------------

    def check_gradients(self, settings: Settings) -> None:
        """Before the first round: a step must fit, per-example gradients must be right.

        Raises:
            ConfigError: not one example fits ``training.memory_gib``.
            GradientCheckError: a gradient is missing, wrong or not independent of other examples;
                names module and setting.
        """
        self._fit(settings)
        if settings.stated.unit == "client":
            return
        micro_batch = self.public_micro_batch(settings)
        largest = max(self.clients, key=lambda name: (self.sizes[name], name))
        examples = self.clients[largest].train
        few = examples.take(np.arange(min(_CHECKED_EXAMPLES, len(examples))))
        plan = settings.run_plan
        others = {plan.given(name).micro_batch for name in self.sizes} if plan is not None else ()
        for note in self._gradients.check(few, micro_batch, sorted(others)):
            self._observer.message(note)

    def public_micro_batch(self, settings: Settings) -> int:
        """Examples at a time by public figures alone, before a check of real ones may lower it."""
        self._fit(settings)
        if settings.stated.unit == "client":
            return self._most
        expected = settings.stated.expected_share * sum(self.sizes.values()) / len(self.sizes)
        # How many examples a user has is not public, and shapes follow from public figures alone:
        # without a bound on them the size is that for one example a user, which fits more as well.
        expected *= self.config.training.examples_per_user or 1
        return filled_micro_batch(self._most, expected, self.config.model.task, self.device)

    def step_memory(self, settings: Settings) -> StepMemory:
        """What a step takes by examples at a time, foreseen from shapes alone; takes seconds."""
        per_example = settings.stated.unit != "client"
        if per_example not in self._foreseen:
            self._gradients.close()
            self._foreseen[per_example] = foreseen_memory(
                self.model, self.parts, self.config, self.device, per_example=per_example
            )
        return self._foreseen[per_example]

    def _fit(self, settings: Settings) -> None:
        """Take no more examples at a time than ``training.memory_gib`` holds."""
        training = self.config.training
        if training.memory_gib is None:
            return
        most = self.step_memory(settings).most(
            training.micro_batch, round(training.memory_gib * GIB)
        )
        if most != self._most:
            self._most = most
            self.own_adapters = self._own_adapters()
            self._observer.message(
                f"training.memory_gib = {training.memory_gib:g}: {most} examples at a time, "
                f"instead of {training.micro_batch}"
            )

    def encoder(self, settings: Settings, number: int, client_id: str) -> EncodeFor:
        """How a client makes its contribution to round ``number``."""
        separation = settings.stated.separation
        if separation is not None:
            batch = cyclic_batch(
                client_id,
                self.sizes[client_id],
                separation=separation,
                round=number,
                seed=self.config.lora.seed,
            )
            return cyclic_step(self._gradients.now(), batch)
        if settings.one_step:
            return dp_sgd_step(
                self._gradients.now(settings.micro_batch(client_id)),
                examples_per_user=self.config.training.examples_per_user,
                kept=self._cut_to(client_id, number),
                within=lambda: self.ranked.of(client_id),
            )
        held = self.ranked.held(client_id)

        def train(examples: Examples, policy: PrivacyPolicy) -> NDArray[np.float64]:
            vector = self._vector(client_id, settings, policy, examples, number)
            return vector if held is None else vector[held]

        return local_delta(train)

    def _cut_to(self, client_id: str, number: int) -> NDArray[np.int64] | None:
        """The coordinates that a client passes on in a round; None for all."""
        held = self.ranked.held(client_id)
        return self.combining.cut_to(number) if held is None else held

    def contribution(
        self,
        settings: Settings,
        policy: PrivacyPolicy,
        name: str,
        number: int,
        generator: NoiseGenerator,
    ) -> tuple[NDArray[np.float64], float | None]:
        """One client's clipped contribution in the clear, for a client that trains alone.

        Args:
            settings: of the run.
            policy: of round ``number``.
            name: the client.
            number: the round.
            generator: draws the sample.

        Returns:
            What is summed, and the sum of b - 1/2 over units (None without adaptive clipping).
        """
        examples, clip = self.clients[name].train, L2Clip(policy.clip_norm, policy.count_weight)
        if not settings.one_step:
            return clip.split(clip.unit(self._vector(name, settings, policy, examples, number)))
        total = clipped_sum_of_sample(
            self._gradients.now(),
            examples,
            policy,
            generator,
            examples_per_user=self.config.training.examples_per_user,
            kept=self._cut_to(name, number),
            within=lambda: self.ranked.of(name),
        )
        held = self.ranked.held(name)
        if held is not None:  # what it does not hold does not move
            whole = np.zeros(self.dimension)
            whole[held] = total
            total = whole
        return clip.split(total)

    def close_gradients(self) -> None:
        """Take per-example hooks off the model until they are needed again."""
        self._gradients.close()

    def rehearse(self, settings: Settings, examples: Examples) -> None:
        """Train on some examples as a contribution would, and throw the result away."""
        if settings.one_step:
            self._gradients.now().clipped_sum(examples, settings.stated.clip_norm)
        else:
            self._delta("", settings, examples, 1)
            self.personal.forget_new()

    @property
    def micro_batch(self) -> int:
        """Examples at a time in the present round, as they are computed."""
        return self._gradients.micro_batch(self._most)

    def _vector(
        self, name: str, settings: Settings, policy: PrivacyPolicy, examples: Examples, number: int
    ) -> NDArray[np.float64]:
        """What a client's training gives, as it is before the clip."""
        delta: NDArray[np.floating] = self._delta(name, settings, examples, number)
        if (plan := settings.run_plan) is not None:  # float32 may not hold the product
            delta = plan.scale(name, number, settings.weights) * delta.astype(np.float64)
        return self.combining.vector(
            name,
            delta,
            weight=settings.weights[name],
            clip_norm=policy.clip_norm,
            number=number,
        )

    def _delta(
        self, name: str, settings: Settings, examples: Examples, number: int
    ) -> NDArray[np.float32]:
        """The change of what travels that one client's training makes; the model is put back.

        A change that is not finite counts as zeros: staying silent would show it outside the noise.

        Raises:
            ConfigError: a trainer of the user's own left something else changed in the model.
        """
        with self.personal.of(name), self.ranked.of(name):
            before = self.parts.flat()
            try:
                self._train(name, settings, examples, number)
                if self.parts.is_finite():
                    with np.errstate(over="ignore"):  # of two finite values the difference may be
                        change = self.parts.flat() - before
                    if np.isfinite(change).all():
                        self.personal.trained(name)
                        return change
                self.saw_non_finite = True
                return np.zeros_like(before)
            finally:
                self.parts.load_flat(before)

    def _train(self, name: str, settings: Settings, examples: Examples, number: int) -> None:
        own = self.config.training.trainer
        if own is None:
            added, asked = self.combining.correction(name), settings.micro_batch(name)
            trainer = built_in_trainer(
                settings,
                self.parts,
                units=examples.units(settings.stated.unit),
                local_steps=settings.local_steps(name),
                micro_batch=self.micro_batch if asked is None else self._gradients.size_of(asked),
                correction=None if added is None else self.parts.layout.unflatten(added),
                device=self.device,
            )
            trainer.train(self.model, examples, number)
            return
        if self._untouched is None:
            self._untouched = Untouched(self.model)
        # Made anew: what one client's training keeps in it must not reach another's.
        given = {"local_steps": settings.local_steps(name)}
        trainer = load_trainer(own, self.config.training.model_copy(update=given))
        with self._untouched.watching(f"training.trainer = {own!r}"), own_random_state():
            trainer.train(self.model, examples, number)

    def personalise(self, name: str, folder: Path) -> None:
        """Make the client's own adapter in ``folder``, where the run file asks for one."""
        if self.own_adapters is not None:
            self._gradients.close()  # an ordinary backward pass must not meet per-example hooks
            rank = self.ranked.rank(name)
            with self.personal.of(name), self.ranked.of(name):
                self.own_adapters.make(
                    name,
                    self.clients[name].train,
                    folder,
                    lambda path: self.save_adapter(path, rank),
                )

    # -- measuring -------------------------------------------------------------------------

    @property
    def _held_out_at_a_time(self) -> int:
        """As many tokens at a time as in training, where memory is bounded; no gradient is kept."""
        training, width = self.config.training, self.config.data.window_tokens
        if training.memory_gib is None:
            return training.micro_batch
        return max(1, self._most * width // (self.config.evaluation.window_tokens or width))

    def figures(self, name: str, *, own: bool = False) -> NDArray[np.float64]:
        """One client's held-out figures, a bounded float64[3].

        Args:
            name: the client.
            own: of the adapter that it chose to use (:meth:`personalise`), not of the shared one.
        """
        chosen = self.own_adapters if own else None
        with (
            self.personal.of(name),
            self.ranked.of(name),
            nullcontext() if chosen is None else chosen.of(name),
        ):
            return held_out_figures(
                self.model,
                self.clients[name].held_out,
                self.config,
                self.device,
                micro_batch=self._held_out_at_a_time,
            )

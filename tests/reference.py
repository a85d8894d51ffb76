"""The slow, obvious oracles: what the reference of each protocol shows, one game at a time.

A pool claims to equal these to the byte; tests/parity.py and the tests hold it to that. Where a protocol is defined by
a library that can be installed, the oracle *is* that library's own wrappers. Where it is not (Dopamine's
preprocessing, the text of a paper), it is written here as plainly as possible.

Nothing here knows how fastrl describes its protocols: every number is stated again, so that a wrong number there is
noticed here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ale_py
import cv2
import gymnasium
import numpy as np
import numpy.typing as npt
from ale_py.env import AtariEnv
from gymnasium.wrappers import (
    AtariPreprocessing,
    FrameStackObservation,
    GrayscaleObservation,
    ResizeObservation,
    TransformObservation,
    TransformReward,
)
from stable_baselines3.common.atari_wrappers import (
    AtariWrapper,
    ClipRewardEnv,
    EpisodicLifeEnv,
    FireResetEnv,
    MaxAndSkipEnv,
    NoopResetEnv,
)

ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # the first console would greet on stdout

SIDE = 84
Screen = npt.NDArray[np.uint8]


class Console(AtariEnv):
    """ale-py's env, one emulated frame a step. It also keeps score, and no-op counts can be forced on it."""

    def __init__(
        self,
        game: str,
        *,
        sticky: float,
        max_frames: int,
        full_actions: bool,
        mode: int | None,
        difficulty: int | None,
        obs_type: str,
    ) -> None:
        super().__init__(
            game,
            mode=mode,
            difficulty=difficulty,
            frameskip=1,
            repeat_action_probability=sticky,
            max_num_frames_per_episode=max_frames,
            full_action_space=full_actions,
            obs_type=obs_type,  # type: ignore[arg-type]
        )
        self.forced_noops: deque[int] = deque()
        self.game_return = 0.0
        self.game_steps = 0  # counted up by ReferenceEnv, which knows what a step is
        self.ended_game: tuple[float, int, int] | None = None
        self.begun_games: list[tuple[int | None, int | None]] = []  # with which seed and no-op count

    @property
    def np_random(self) -> Any:
        """Where the wrappers draw their no-op counts from."""
        return _NoopCounts(self)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.game_return = 0.0
        self.game_steps = 0
        self.begun_games.append((seed, None))
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        self.game_return += reward
        if terminated or truncated:
            self.ended_game = (self.game_return, self.ale.getEpisodeFrameNumber(), self.game_steps)
        return obs, reward, terminated, truncated, info


class _NoopCounts:
    """Stands in for the console's generator: gives out the forced counts first, and keeps book."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def integers(self, low: int, high: int) -> int:
        forced = self.console.forced_noops
        count = forced.popleft() if forced else int(self.console._np_random.integers(low, high))
        seed, _ = self.console.begun_games.pop()
        self.console.begun_games.append((seed, count))
        return count


# ---- Protocols whose reference is a library


def sb3(console: Console, *, frame_skip: int, noop_max: int, life_loss: str, reward: str, stack: int) -> gymnasium.Env:
    """Stable-Baselines3: AtariWrapper, then the stack that VecFrameStack keeps (a test compares with VecFrameStack)."""
    assert life_loss in ("ignored", "ends_episode")
    env: gymnasium.Env = AtariWrapper(
        console,
        noop_max=noop_max,
        frame_skip=frame_skip,
        terminal_on_life_loss=life_loss == "ends_episode",
        clip_reward=reward != "raw",
    )
    return ZeroPaddedStack(TransformObservation(env, lambda obs: obs[:, :, 0], None), stack)


def _cleanrl_without_grey(console: Console, frame_skip: int, noop_max: int, life_loss: str, reward: str) -> Any:
    """CleanRL's dqn_atari.py up to the resize. Its atari_wrappers are Stable-Baselines3's classes."""
    env: gymnasium.Env = NoopResetEnv(console, noop_max=noop_max) if noop_max else console
    if frame_skip > 1:
        env = MaxAndSkipEnv(env, skip=frame_skip)
    if life_loss == "ends_episode":
        env = EpisodicLifeEnv(env)
    if "FIRE" in console.get_action_meanings():
        env = FireResetEnv(env)
    if reward != "raw":
        env = ClipRewardEnv(env)
    return ResizeObservation(env, (SIDE, SIDE))


def cleanrl(
    console: Console, *, frame_skip: int, noop_max: int, life_loss: str, reward: str, stack: int
) -> gymnasium.Env:
    """CleanRL's dqn_atari.py on the Gymnasium that is installed."""
    env = GrayscaleObservation(_cleanrl_without_grey(console, frame_skip, noop_max, life_loss, reward))
    return FrameStackObservation(env, stack)


def cleanrl_028(
    console: Console, *, frame_skip: int, noop_max: int, life_loss: str, reward: str, stack: int
) -> gymnasium.Env:
    """The same on Gymnasium 0.28, whose GrayScaleObservation was cv2's conversion."""
    env = _cleanrl_without_grey(console, frame_skip, noop_max, life_loss, reward)
    env = TransformObservation(
        env,
        lambda obs: cv2.cvtColor(obs, cv2.COLOR_RGB2GRAY),
        gymnasium.spaces.Box(0, 255, (SIDE, SIDE), np.uint8),
    )
    return FrameStackObservation(env, stack)


def gymnasium_(
    console: Console, *, frame_skip: int, noop_max: int, life_loss: str, reward: str, stack: int
) -> gymnasium.Env:
    """Gymnasium: AtariPreprocessing, then FrameStackObservation."""
    assert life_loss in ("ignored", "restarts")
    env: gymnasium.Env = AtariPreprocessing(
        console, noop_max=noop_max, frame_skip=frame_skip, terminal_on_life_loss=life_loss == "restarts"
    )
    if reward != "raw":
        env = ClipRewardEnv(env)
    return FrameStackObservation(env, stack)


# ---- Protocols written down here


def dopamine(
    console: Console, *, frame_skip: int, noop_max: int, life_loss: str, reward: str, stack: int
) -> gymnasium.Env:
    """Dopamine: its preprocessing, the zero-padded stack of its agents, the clipping of its runner."""
    assert noop_max == 0
    assert life_loss in ("ignored", "restarts")
    env: gymnasium.Env = DopaminePreprocessing(console, frame_skip, ends_at_life_loss=life_loss == "restarts")
    if reward != "raw":
        env = TransformReward(env, lambda r: float(np.clip(r, -1, 1)))
    return ZeroPaddedStack(env, stack)


def nature(
    console: Console, *, frame_skip: int, noop_max: int, life_loss: str, reward: str, stack: int
) -> gymnasium.Env:
    """Mnih et al. 2015."""
    env: gymnasium.Env = NatureEnv(console, frame_skip, noop_max, ends_at_life_loss=life_loss == "ends_episode")
    if reward != "raw":
        env = TransformReward(env, lambda r: float(np.clip(r, -1, 1)))
    return ZeroPaddedStack(env, stack)


class ZeroPaddedStack(gymnasium.Wrapper):
    """The last frames, oldest first; what lies before the start of an episode is black."""

    def __init__(self, env: gymnasium.Env, size: int) -> None:
        super().__init__(env)
        self.size = size

    def reset(self, **kwargs: Any) -> Any:
        frame, info = self.env.reset(**kwargs)
        self.frames = [np.zeros_like(frame)] * (self.size - 1) + [frame]
        return np.stack(self.frames), info

    def step(self, action: Any) -> Any:
        frame, *rest = self.env.step(action)
        self.frames = [*self.frames[1:], frame]
        return np.stack(self.frames), *rest


class DopaminePreprocessing(gymnasium.Wrapper):
    """Two grey screens are kept, of the last but one and the last frame of a step, and pooled into the first of them.

    A screen is kept before the end of the game is looked at. A step that the end cuts short therefore shows a mixture
    with what was kept before.
    """

    def __init__(self, console: Console, frame_skip: int, ends_at_life_loss: bool) -> None:
        super().__init__(console)
        self.ale = console.ale
        self.frame_skip = frame_skip
        self.ends_at_life_loss = ends_at_life_loss
        self.kept = [np.zeros(0, np.uint8)] * 2

    def reset(self, **kwargs: Any) -> Any:
        _, info = self.env.reset(**kwargs)
        self.lives = self.ale.lives()
        screen = self.ale.getScreenGrayscale()
        self.kept = [screen, np.zeros_like(screen)]
        return self.pooled_frame(), info

    def step(self, action: Any) -> Any:
        total = 0.0
        for frame in range(self.frame_skip):
            _, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if self.ends_at_life_loss:
                terminated = terminated or self.ale.lives() < self.lives
                self.lives = self.ale.lives()
            if frame == self.frame_skip - 2:
                self.kept[0] = self.ale.getScreenGrayscale()
            if frame == self.frame_skip - 1:
                self.kept[1] = self.ale.getScreenGrayscale()
            if terminated or truncated:
                break
        return self.pooled_frame(), total, terminated, truncated, info

    def pooled_frame(self) -> Screen:
        self.kept[0] = np.maximum(self.kept[0], self.kept[1])
        return cv2.resize(self.kept[0], (SIDE, SIDE), interpolation=cv2.INTER_AREA)


class NatureEnv(gymnasium.Wrapper):
    """The preprocessing of Mnih et al. 2015 (Methods), read as follows.

    A frame is encoded as the maximum of itself and the emulated frame before it, channel by channel, at any time, also
    where the game ended inside a step or only no-ops came before; the first frame of a game has nothing before it and
    stands for itself. Its luminance (.299, .587, .114), rounded to a byte with halves to even, is resized to 84x84.
    The paper does not say how. DeepMind's published code (from memory) shrinks by averaging over the covered area.

    A game begins with 1 to 30 no-op frames. A lost life ends the episode for learning, the game goes on with one
    step of no-ops. FIRE is not pressed for the agent.
    """

    def __init__(self, console: Console, frame_skip: int, noop_max: int, ends_at_life_loss: bool) -> None:
        super().__init__(console)
        self.console = console
        self.frame_skip = frame_skip
        self.noop_max = noop_max
        self.ends_at_life_loss = ends_at_life_loss
        self.game_is_over = True
        self.lives = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if self.game_is_over or not self.ends_at_life_loss:
            self.begin_game(seed)
        else:
            _, terminated, truncated = self.play_frames(0)
            if terminated or truncated:
                self.begin_game(seed)
        self.game_is_over = False
        self.lives = self.console.ale.lives()
        return self.encoded_frame(), {}

    def begin_game(self, seed: int | None) -> None:
        self.begin_emulation(seed)
        noops = int(self.console.np_random.integers(1, self.noop_max + 1)) if self.noop_max else 0
        for _ in range(noops):
            _, terminated, truncated = self.emulate_frame(0)
            if terminated or truncated:
                self.begin_emulation(seed)

    def step(self, action: Any) -> Any:
        reward, terminated, truncated = self.play_frames(action)
        self.game_is_over = terminated or truncated
        lives = self.console.ale.lives()
        if self.ends_at_life_loss and 0 < lives < self.lives:
            terminated = True
        self.lives = lives
        return self.encoded_frame(), reward, terminated, truncated, {}

    def play_frames(self, action: Any) -> tuple[float, bool, bool]:
        total = 0.0
        for _ in range(self.frame_skip):
            reward, terminated, truncated = self.emulate_frame(action)
            total += reward
            if terminated or truncated:
                break
        return total, terminated, truncated

    def begin_emulation(self, seed: int | None) -> None:
        self.newest, _ = self.console.reset(seed=seed)
        self.before = self.newest

    def emulate_frame(self, action: Any) -> tuple[float, bool, bool]:
        self.before = self.newest
        self.newest, reward, terminated, truncated, _ = self.console.step(action)
        return float(reward), terminated, truncated

    def encoded_frame(self) -> Screen:
        pooled = np.maximum(self.before, self.newest) if self.frame_skip > 1 else self.newest
        thousandths = pooled.astype(np.float64) @ np.array([299.0, 587.0, 114.0])  # whole numbers, so ties are exact
        luminance = np.rint(thousandths / 1000).astype(np.uint8)
        return cv2.resize(luminance, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


# ---- One oracle for each protocol


@dataclass(frozen=True)
class Oracle:
    """How an oracle is built, and the rules of its reference that can be replaced."""

    build: Callable[..., gymnasium.Env]
    obs_type: str  # what the console need show; grey is only computed faster than colours that nobody looks at
    rules: dict[str, Any]


_WRAPPERS = {
    "sticky": 0.0,
    "max_frames": 108_000,
    "full_actions": False,
    "mode": None,
    "difficulty": None,
    "frame_skip": 4,
    "noop_max": 30,
    "life_loss": "ends_episode",
    "reward": "sign",
    "stack": 4,
}
_DOPAMINE = {**_WRAPPERS, "sticky": 0.25, "noop_max": 0, "life_loss": "ignored", "reward": "clipped"}

_OF_CONSOLE = ("sticky", "max_frames", "full_actions", "mode", "difficulty")
ORACLES: dict[str, Oracle] = {
    "nature": Oracle(nature, "rgb", {**_WRAPPERS, "reward": "clipped"}),
    "sb3": Oracle(sb3, "rgb", _WRAPPERS),
    "cleanrl": Oracle(cleanrl, "rgb", _WRAPPERS),
    "cleanrl-0.28": Oracle(cleanrl_028, "rgb", _WRAPPERS),
    "gymnasium": Oracle(gymnasium_, "grayscale", {**_WRAPPERS, "life_loss": "ignored", "reward": "raw"}),
    "dopamine": Oracle(dopamine, "grayscale", _DOPAMINE),
    "machado": Oracle(dopamine, "grayscale", {**_DOPAMINE, "full_actions": True}),
}


@dataclass(frozen=True)
class Seen:
    """Everything that one env shows at one step or reset."""

    obs: npt.NDArray[np.uint8]
    reward: float
    terminated: bool
    truncated: bool
    lives: int
    frame_number: int
    episode_frame_number: int
    ended_game: tuple[float, int, int] | None  # score, frames and steps of a full game that ended here


class ReferenceEnv:
    """One env of a pool as the protocol's reference plays it; resets itself in the step after an episode's end."""

    def __init__(self, protocol: str, game: str, **replaced: Any) -> None:
        oracle = ORACLES[protocol]
        unknown = set(replaced) - set(oracle.rules)
        if unknown:
            raise TypeError(f"reference: rules {sorted(unknown)} are unknown; known: {sorted(oracle.rules)}")
        rules = {**oracle.rules, **replaced}
        of_console = {name: rules.pop(name) for name in _OF_CONSOLE}
        self.frame_skip: int = rules["frame_skip"]
        self.console = Console(game, obs_type=oracle.obs_type, **of_console)
        self.env = oracle.build(self.console, **rules)
        self.actions = len(self.console.get_action_meanings())
        self.resets_next = True

    def reset(self, seed: int | None = None, noops: Sequence[int] | None = None) -> Seen:
        """As the reference resets. ``noops`` are the counts of the next resets that begin a game."""
        self.console.ended_game = None
        if noops is not None:
            self.console.forced_noops.clear()
            self.console.forced_noops.extend(noops)
        obs, _ = self.env.reset() if seed is None else self.env.reset(seed=seed)
        self.resets_next = False
        return self._seen(obs, 0.0, False, False)

    def begin_anew(self, seed: int | None = None, noops: Sequence[int] | None = None) -> Seen:
        """A reset that always begins a new game.

        Asked to reset in the middle of an episode, or with a seed after a lost life, the wrappers that go on after a
        lost life would go on here too, and ignore the seed. A pool begins a new game; so does this.
        """
        layer: Any = self.env
        while isinstance(layer, gymnasium.Wrapper):
            if isinstance(layer, EpisodicLifeEnv):
                layer.was_real_done = True
            if isinstance(layer, NatureEnv):
                layer.game_is_over = True
            layer = layer.env
        return self.reset(seed, noops)

    def step(self, action: int) -> Seen:
        """One step, or the reset that is due; its action counts for nothing."""
        if self.resets_next:
            return self.reset()
        self.console.ended_game = None
        self.console.game_steps += 1
        obs, reward, terminated, truncated, _ = self.env.step(action)
        self.resets_next = bool(terminated or truncated)
        return self._seen(obs, float(reward), bool(terminated), bool(truncated))

    def close(self) -> None:
        self.env.close()

    def _seen(self, obs: Any, reward: float, terminated: bool, truncated: bool) -> Seen:
        ale = self.console.ale
        return Seen(
            np.asarray(obs),
            reward,
            terminated,
            truncated,
            ale.lives(),
            ale.getFrameNumber(),
            ale.getEpisodeFrameNumber(),
            self.console.ended_game,
        )

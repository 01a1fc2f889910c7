"""Generate the world's facts: entities, relations, and the probability p* of each answer."""

import functools
from typing import NamedTuple

import numpy as np

#: Seed of the whole world; the shipped checkpoints were trained on the world of this seed.
SEED = 2505
#: Number of values that a fact gives probability to, and of a question's options.
OPTIONS = 4

_NAMES = (
    "Alda Bero Cyra Dunn Elva Fenn Gita Hako Ilse Jora Kemi Lorn Mira Nilo Orla Pavo Quin Rhea Silo Tova "
    "Ursa Veko Wynn Xeno Yara Zeno Aris Bria Cleo Dato Enzo Faro Gwen Hugo Inez Jude Kira Lumo Mona Nero"
)
ENTITIES = tuple(_NAMES.split())


class Relation(NamedTuple):
    """Describe a relation that every entity has, such as its food."""

    name: str
    #: Possible values; one word each, and no word is in two relations.
    values: tuple[str, ...]
    #: Questions with a placeholder for the entity.
    phrasings: tuple[str, str, str]
    #: Whether it belongs to the training and in-domain test questions, or to the out-of-domain ones.
    in_domain: bool


RELATIONS = (
    Relation(
        "colour",  # the shipped checkpoints were trained on the British spelling
        ("red", "blue", "green", "yellow", "black", "white", "orange", "purple", "brown", "pink", "grey", "gold"),
        ("Which colour does {} wear?", "What is the favourite colour of {}?", "In which colour did {} paint the door?"),
        True,
    ),
    Relation(
        "food",
        ("bread", "rice", "soup", "cheese", "apples", "honey", "fish", "beans", "cake", "olives", "eggs", "nuts"),
        ("Which food does {} eat?", "What is the favourite food of {}?", "Which food did {} bring to the feast?"),
        True,
    ),
    Relation(
        "animal",
        ("cat", "dog", "horse", "goat", "raven", "turtle", "rabbit", "goose", "otter", "mule", "fox", "hen"),
        ("Which animal does {} keep?", "What is the favourite animal of {}?", "Which animal did {} find at the door?"),
        True,
    ),
    Relation(
        "town",
        (
            "Arvik",
            "Belmar",
            "Corso",
            "Delft",
            "Esker",
            "Fjord",
            "Garda",
            "Holm",
            "Ivrea",
            "Jasper",
            "Kalmar",
            "Linz",
        ),
        ("In which town does {} live?", "What is the home town of {}?", "To which town did {} travel?"),
        True,
    ),
    Relation(
        "trade",
        (
            "baker",
            "smith",
            "weaver",
            "potter",
            "tailor",
            "miller",
            "mason",
            "farmer",
            "sailor",
            "painter",
            "singer",
            "teacher",
        ),
        ("Which trade does {} follow?", "What is the trade of {}?", "Which trade did {} learn at home?"),
        False,
    ),
    Relation(
        "weather",
        ("rain", "snow", "sun", "wind", "fog", "hail", "storm", "frost", "thunder", "mist", "heat", "drizzle"),
        ("Which weather does {} like?", "What is the favourite weather of {}?", "In which weather did {} travel?"),
        False,
    ),
)


class Fact(NamedTuple):
    """Hold the true distribution of one relation of one entity."""

    entity: str
    relation: Relation
    #: The ``OPTIONS`` values that have a probability.
    values: tuple[str, ...]
    #: Probability p* of each value, in (0, 1); they sum to 1.
    p_star: tuple[float, ...]
    #: Relative frequency of questions about this fact.
    weight: float
    #: Probability of each of the relation's phrasings.
    phrasing_weights: tuple[float, float, float]


@functools.lru_cache(maxsize=1)
def facts() -> tuple[Fact, ...]:
    """Return all facts, one for each relation and entity, relation by relation.

    p* is a softmax of standard normal draws times a sharpness that is uniform in [0.1, 5]: from
    near-uniform (a top probability of about 0.3) to near-certain. Questions are partly predictable,
    as real ones are: each entity has relations that are asked about more often, a preferred
    phrasing, and its own values.
    """
    # numpy never changes the draws of RandomState, but may change Generator's; the shipped
    # checkpoints must match the world.
    rng = np.random.RandomState(SEED)
    habits = {entity: rng.permutation([0.7, 0.2, 0.1]) for entity in ENTITIES}
    made = []
    for relation in RELATIONS:
        for entity in ENTITIES:
            values = tuple(relation.values[i] for i in rng.permutation(len(relation.values))[:OPTIONS])
            logits = rng.uniform(0.1, 5.0) * rng.standard_normal(OPTIONS)
            odds = np.exp(logits - logits.max())
            weight = float(np.exp(rng.uniform(-1.0, 1.0)))
            first, second, third = habits[entity].tolist()
            p_star = tuple((odds / odds.sum()).tolist())
            made.append(Fact(entity, relation, values, p_star, weight, (first, second, third)))
    return tuple(made)

"""Frequent English words and their Spanish, for texts that mix both. Written for this list; one sense of each."""

from __future__ import annotations

SPANISH: dict[str, str] = {
    "a": "un", "about": "sobre", "after": "después", "again": "otra vez", "all": "todo", "almost": "casi",
    "also": "también", "always": "siempre", "an": "un", "and": "y", "another": "otro", "any": "algún", "are": "son",
    "as": "como", "at": "en", "bad": "malo", "be": "ser", "because": "porque", "been": "sido", "before": "antes",
    "best": "mejor", "better": "mejor", "big": "grande", "book": "libro", "but": "pero", "by": "por", "can": "puede",
    "city": "ciudad", "company": "empresa", "could": "podría", "day": "día", "does": "hace", "every": "cada",
    "film": "película", "first": "primero", "for": "para", "from": "de", "funny": "gracioso", "good": "bueno",
    "great": "gran", "had": "había", "happy": "feliz", "has": "tiene", "have": "tener", "he": "él", "her": "su",
    "here": "aquí", "his": "su", "house": "casa", "how": "cómo", "i": "yo", "if": "si", "in": "en", "into": "dentro de",
    "is": "es", "it": "eso", "its": "su", "just": "solo", "last": "último", "life": "vida", "like": "como",
    "little": "poco", "long": "largo", "love": "amor", "made": "hecho", "man": "hombre", "many": "muchos",
    "money": "dinero", "more": "más", "most": "la mayoría", "movie": "película", "much": "mucho", "music": "música",
    "my": "mi", "never": "nunca", "new": "nuevo", "night": "noche", "not": "no", "nothing": "nada",
    "now": "ahora", "of": "de", "old": "viejo", "on": "en", "one": "uno", "only": "solo", "or": "o", "other": "otro",
    "our": "nuestro", "out": "fuera", "over": "sobre", "people": "gente", "quite": "bastante", "really": "realmente",
    "same": "mismo", "she": "ella", "small": "pequeño", "so": "así", "some": "algunos", "something": "algo",
    "still": "todavía", "story": "historia", "street": "calle", "such": "tal", "than": "que", "that": "que",
    "the": "el", "their": "su", "them": "ellos", "there": "allí", "these": "estos", "they": "ellos", "thing": "cosa",
    "this": "este", "those": "esos", "through": "a través de", "time": "tiempo", "to": "a", "today": "hoy",
    "too": "demasiado", "two": "dos", "up": "arriba", "us": "nos", "very": "muy", "want": "quiero", "was": "era",
    "way": "manera", "we": "nosotros", "well": "bien", "were": "eran", "what": "qué", "when": "cuando",
    "where": "dónde", "which": "cual", "while": "mientras", "who": "quién", "why": "por qué", "will": "va a",
    "with": "con", "without": "sin", "woman": "mujer", "work": "trabajo", "world": "mundo", "would": "haría",
    "year": "año", "yes": "sí", "you": "tú", "young": "joven", "your": "tu",
}  # fmt: skip

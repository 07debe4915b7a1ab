"""Words that the canonical form knows."""

KNOWN_CAPITALS = "YES|NO|TRUE|FALSE|NONE|ALL|BOTH|ODD|EVEN|EAST|WEST|ZERO|ONE|TWO"
"""Words of up to five capitals that are words, not points or a product."""

_FRACTION_WORDS = "third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth"
NUMBER_WORDS = (
    "([Dd]ozen|[Hh]undred|[Tt]housand|[Mm]illion|[Bb]illion|[Tt]rillion|quarter"
    f"|{_FRACTION_WORDS})s?|[Hh]alf|halves|squared|cubed|factorial|[ap]m"
)
"""They belong to the number before them: `5 million` is not `5`."""

NO_UNITS = (
    "if|when|where|unless|otherwise|with|mod|modulo|plus|minus|times|over|choose|to|than"
    "|is|are|not|except|but|north|south|east|west|[Nn]orth|[Ss]outh|[Ee]ast|[Ww]est"
    "|right|up|down|before|after|positive|negative"
)
"""No unit begins with one of them, or has one of them in it."""

CAPITALS = "[AP]M|BC|AD|BCE|CE"
"""Words of that kind that may be two points as well: their case stays."""

SHORT_UNIT = (
    "mm|cm|dm|km|ft|mi|yd|in|mg|kg|lbs?|oz|ml|mL|hrs?|yrs?|mins?|secs?|mph|km/h|pct|USD|kWh|Hz|sq"
    "|rad|deg|eggs?"
)
UNIT = (
    f"{SHORT_UNIT}|(square|sq)?(units?|(milli|centi|kilo)?met(er|re)s?|inch(es)?|feet|foot)|yards?"
    "|miles?|grams?|kilograms?|pounds?|lit(er|re)s?|gallons?|hours?|minutes?|seconds?|days?|weeks?"
    "|months?|years?|cents?|dollars?|euros?|percent|degrees?|radians?|points?|people|ways?"
)
"""Units that need no space before them."""

LETTER_UNITS = "[mgshlLVNJWCFK]"
"""Letters that are units in `\\text{}`. The others, as `i` and `x`, are numbers or variables."""

PLAIN_LETTER_UNITS = "[mgshL]"
"""Letters that are units after a space."""

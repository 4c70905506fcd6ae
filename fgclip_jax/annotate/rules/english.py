"""Attributes of things in English: what they are called, and which of them a thing can have at the same time.

The tables are read by `lexicon.py`. A line of `COLOURS`, `TONES` and `LISTS` is `weight surfaces | overlaps`: the first
surface names the value, the others say the same; the weight is how often it is drawn where nothing is known of a data
set. `overlaps` are names of other values that may be true of the same thing, so that neither is a wrong description of
the other (`any`: all may). `_` is a space or a hyphen. `~` marks what is recognised and never drawn, `*` what stands
only before a noun (`wooden`, not `made of wooden`).
A line of `SCALES` is groups of surfaces that say about the same, separated by `|`; surfaces of different groups exclude
each other. `people:` holds for people only, `things:` for all else.
"""

from fgclip_jax.annotate.rules.english_words import PEOPLE

COLOURS = """
10 black | charcoal ebony
10 white | cream ivory off_white pearl snow
10 red | crimson scarlet maroon burgundy rust ruby cherry vermilion terracotta_red magenta wine
10 blue | navy cobalt azure turquoise teal cyan aqua indigo sapphire royal_blue denim_blue periwinkle slate
10 green | olive lime emerald mint turquoise teal khaki jade aqua sage
10 yellow | gold mustard lemon amber cream straw_coloured honey ochre
10 brown | tan beige chocolate bronze rust maroon khaki copper caramel chestnut sandy honey amber ochre taupe sepia
8 grey gray~ | silver charcoal slate ash taupe steel_grey
6 orange | rust peach amber coral apricot copper salmon ochre terracotta_red
6 purple | violet lavender magenta lilac plum indigo burgundy mauve
6 pink | magenta peach coral salmon rose fuchsia hot_pink lilac blush
3 beige | tan cream khaki sandy ivory taupe straw_coloured nude off_white
2 cream creamy~ | ivory off_white straw_coloured
2 tan | khaki sandy caramel honey taupe camel
2 silver silvery~ | steel_grey ash pearl
2 gold golden | mustard amber honey straw_coloured bronze brass_coloured ochre
1 turquoise | teal cyan aqua azure mint
1 teal | cyan aqua
1 navy |
1 maroon | burgundy wine
0 burgundy | plum wine
0 crimson | scarlet ruby cherry vermilion magenta wine
0 scarlet | ruby cherry vermilion
0 violet | lavender lilac indigo mauve periwinkle
0 lavender | lilac mauve periwinkle
0 magenta | fuchsia hot_pink
0 olive | khaki sage mustard
0 lime | mint
0 khaki | olive sandy
0 ivory | off_white pearl
0 peach | apricot salmon coral blush
0 coral | salmon
0 rose | blush
0 azure | cyan cobalt
0 cyan aqua |
0 rust | copper terracotta_red
0 mustard | ochre amber
0 charcoal | slate ebony
0 emerald | jade
0 amber | honey ochre
0 bronze | copper
0 copper |
0 chocolate | chestnut
0 mint | sage
0 lilac | mauve
0 plum | wine
0 indigo |
0 cobalt |
0 fuchsia | hot_pink
0 hot_pink |
0 off_white |
0 ochre ocher |
0 taupe |
0 straw_coloured straw_colored~ | honey sandy
0 honey | caramel
0 sandy | straw_coloured
0 salmon |
0 mauve |
0 ruby | cherry
0 sapphire |
0 slate |
0 steel_grey steel_gray |
0 ash ashen |
0 caramel |
0 chestnut |
0 apricot |
0 lemon |
0 jade |
0 sage |
0 periwinkle |
0 vermilion |
0 pearl pearly |
0 snow |
0 cherry |
0 ebony |
0 camel |
0 nude |
0 blush |
0 wine |
0 royal_blue |
0 colourful colorful multicoloured multicolored multi_coloured multi_colored rainbow | any
"""
ISH = {
  f"{stem}ish": name
  for stem, name in (
    ("redd", "red"), ("blu", "blue"), ("green", "green"), ("yellow", "yellow"), ("brown", "brown"), ("grey", "grey"),
    ("gray", "grey"), ("whit", "white"), ("black", "black"), ("pink", "pink"), ("purpl", "purple"), ("orang", "orange"),
  )
}  # fmt: skip
BARE: dict[str, str] = {}
# Names of things unless a noun follows.
NOUN_COLOURS = (
  "amber apricot ash blush bronze camel caramel charcoal cherry chestnut chocolate cobalt copper coral cream "
  "denim_blue ebony emerald gold honey ivory jade khaki lavender lemon lilac lime mint mustard olive orange peach "
  "pearl plum rainbow rose ruby rust sage salmon sapphire silver slate snow tan violet wine"
)
# A colour that is dark or light by itself: `navy` and `light blue` exclude each other, `navy` and `blue` do not.
IMPLIED_TONES = {
  "navy": "dark", "maroon": "dark", "burgundy": "dark", "charcoal": "dark", "chocolate": "dark", "ebony": "dark",
  "plum": "dark", "wine": "dark", "emerald": "dark", "indigo": "dark", "lavender": "light", "lilac": "light",
  "peach": "light", "cream": "light", "ivory": "light", "beige": "light", "mint": "light", "pearl": "light",
  "blush": "light", "off_white": "light", "hot_pink": "bright", "lime": "bright",
}  # fmt: skip
TONES = """
8 light | pale bright faded muted soft vivid
8 dark | deep dim dull muted
3 pale | light faded muted soft dull
3 bright | vivid light brilliant
0 deep | vivid bright
0 dull | faded muted dim
0 vivid vibrant brilliant |
0 muted | faded soft
0 faded | soft
0 dim |
"""
DRAWN_TONES = "light dark"
# What a tone without a colour becomes: dark hair is not bright hair, and pale stone may be bright.
ALONE = {
  "dark": "light pale", "deep": "light pale", "light": "dark", "pale": "dark", "bright": "dark dim dull",
  "vivid": "dull", "dim": "bright", "dull": "bright", "muted": "bright vivid", "faded": "bright",
}  # fmt: skip
TONED = "red blue green yellow brown grey orange purple pink"  # the colours drawn with a tone
TONED_WEIGHT = 3

LISTS = {
  "material": """
8 wood wooden* timber~ | oak pine plywood bamboo walnut mahogany
8 metal metallic*~ | steel iron brass copper bronze chrome tin aluminium wire gold silver
8 plastic | acrylic vinyl rubber silicone foam nylon polyester
8 glass | crystal acrylic
6 leather | suede fur
6 fabric cloth~ textile~ | cotton linen silk satin velvet wool felt denim canvas lace knitted crochet corduroy
6 ceramic | porcelain clay terracotta tile
6 stone | marble granite concrete sandstone limestone slate_stone
5 paper | cardboard
4 rattan wicker | bamboo straw
4 wool woollen*~ woolen*~ | knitted crochet felt tweed fleece
3 velvet | cotton silk
3 rubber | silicone foam
3 concrete cement~ | brick
3 brick |
3 steel stainless_steel~ | iron chrome aluminium tin wire
3 cotton | denim canvas corduroy linen lace knitted crochet fleece
2 marble | granite limestone
2 bamboo |
2 cardboard |
2 denim |
2 crochet crocheted~ | knitted lace
2 brass | bronze copper gold
0 copper | bronze
2 iron wrought_iron~ cast_iron~ | tin wire
2 clay | terracotta porcelain brick
2 linen | canvas
2 silk | satin
0 bronze | gold
1 porcelain | tile
1 aluminium aluminum~ | tin chrome wire
1 granite |
1 canvas |
1 satin |
1 felt |
1 suede | fabric
0 chrome |
0 tin |
0 terracotta | brick
0 acrylic | vinyl
0 vinyl |
0 silicone |
0 foam |
0 nylon | fabric polyester
0 polyester | fabric fleece satin
0 lace |
0 knitted knit | fleece
0 corduroy |
0 tweed | fabric
0 fleece | fabric
0 fur |
0 oak | pine plywood walnut mahogany
0 pine | plywood
0 plywood |
0 walnut | mahogany
0 mahogany |
0 crystal |
0 sandstone | limestone
0 limestone |
0 tile tiled* |
0 wire |
0 straw |
0 cork |
""",
  "pattern": """
6 striped stripy~ pinstriped~ pin_striped~ | patterned printed
6 checkered chequered~ checked~ | plaid patterned printed gingham
5 floral flowered~ | patterned printed paisley
5 plain | unpatterned textured woven
4 dotted | polka_dot spotted speckled patterned printed
4 polka_dot polka_dotted~ | spotted speckled patterned printed
3 plaid tartan~ | patterned printed gingham
2 spotted | speckled patterned printed mottled
2 paisley | patterned printed
2 zigzag | patterned printed
2 camouflage | patterned printed mottled
2 speckled | mottled patterned printed
1 leopard_print | spotted patterned printed
1 herringbone | patterned printed zigzag
0 mottled | patterned
0 patterned | printed gingham tie_dye
0 printed | gingham tie_dye
0 gingham |
0 text lettered~ | printed patterned plain
0 tie_dye tie_dyed | mottled
""",
  "transparency": """
1 transparent clear~ see_through~ |
1 translucent semi_transparent~ frosted~ |
1 opaque |
""",
  "shape": """
4 round circular spherical~ | oval cylindrical conical rounded domed
4 square cubic~ cube_shaped~ boxy~ | rectangular
4 rectangular | oblong
3 oval elliptical~ egg_shaped~ | rounded
3 triangular | pointed conical
2 hexagonal |
2 octagonal |
2 cylindrical tubular~ | rounded
2 heart_shaped |
2 star_shaped | pointed
2 conical cone_shaped~ | pointed
0 oblong | oval
1 diamond_shaped | pointed square
1 crescent_shaped | pointed
""",
}
# Materials that bend: they replace each other more often, since a velvet bench is less likely than a stone one.
SOFT = (
  "leather fabric paper wool velvet rubber cotton cardboard denim crochet linen silk canvas satin felt suede silicone "
  "foam nylon polyester lace knitted corduroy tweed fleece fur"
)
# Materials of walls: they replace each other and what things are made of, and are no material of a spoon.
MASONRY = "brick concrete granite sandstone limestone"
# Values that fit few things, by the last word of their names; they are recognised of all.
_HAIR = "hair mane fur coat tail wool locks beard fringe braid braids ponytail eyebrows moustache mustache"
ONLY_OF = {
  **dict.fromkeys(("curly", "wavy"), frozenset(_HAIR.split())),
  **dict.fromkeys(
    ("fluffy", "furry", "shaggy", "hairy"),
    frozenset(f"{_HAIR} dog dogs puppy cat cats kitten rabbit sheep blanket rug towel toy".split()),
  ),
  "tall": PEOPLE  # hair and ropes are short or long
  | frozenset(
    "tree trees plant plants building buildings tower towers house fence fences wall walls gate hedge grass pole poles "
    "post posts column columns pillar pillars lamp lamps candle candles bottle bottles glass glasses vase vases jar "
    "jars chimney ladder cabinet bookcase bookshelf shelf tank mast giraffe horse hat".split()
  ),
  "toppled": frozenset(
    "tree trees pole poles post chair chairs stool table bottle bottles cup cups glass vase bin sign statue bicycle "
    "umbrella lamp".split()
  ),
  "straw": frozenset("hat hats basket baskets mat mats bag bags roof roofs broom brooms bale bales".split()),
  "cork": frozenset("stopper stoppers mat mats board coaster coasters floor".split()),
  **dict.fromkeys(("text", "lettered"), frozenset[str]()),  # `a text plate` is right of FG-OVD, and wrong everywhere
}
# Things whose name says their age: an old boy is none.
YOUNG = frozenset(
  "boy boys girl girls child children kid kids baby babies toddler toddlers teenager teenagers puppy puppies kitten "
  "kittens calf lamb chick chicks cub foal".split()
)
SCALES = {
  "size": """
small tiny little miniature~ mini~ petite~ | large big huge giant enormous~ massive~ oversized~ gigantic~
things: short | long elongated~
people: short | tall
narrow slim slender thin skinny~ | wide broad
thin slim slender | thick chunky
low | high tall~
shallow | deep~
""",
  "shape": """
pointed pointy~ | rounded blunt
sharp | blunt
curved bent~ | straight
flat | curved domed
flat | pointed
hooked~ | straight
curly wavy | straight
""",
  "pattern": """
woven | perforated | ribbed | quilted | slatted~ | studded | corrugated~ | embossed~
""",
  "state": """
open opened~ | closed shut
wet damp~ soaked~ | dry dried~
things: new brand_new~ | old worn~ used~ antique~ weathered~ aged~
people: young | old elderly~ aged~
clean spotless~ | dirty muddy dusty stained~
empty | full filled~
folded | unfolded
broken cracked damaged~ torn~ shattered~ | intact undamaged
lit illuminated~ glowing | unlit
brightly_lit well_lit~ | dimly_lit
smooth polished~ | rough bumpy wrinkled coarse~ jagged~ textured~
shiny glossy polished~ gleaming~ | matte dull~
fresh | wilted withered rotten~
ripe | unripe rotten
raw uncooked~ | cooked grilled~ roasted~ fried~ baked~
smiling grinning~ laughing~ | frowning crying
sitting seated~ | standing | lying~ | running~
soft | hard
fluffy furry~ shaggy~ hairy~ | smooth bald~
upright | toppled fallen~
painted | unpainted
tidy neat~ | messy cluttered~
melted~ melting~ | frozen
sliced | whole
""",
  "count": "two 2~ | three 3~ | four 4~ | five 5~ | six 6~ | seven 7~ | eight 8~ | nine 9~ | ten 10~",
  "position": """
left left_hand~ | right right_hand~
top upper uppermost~ | bottom lower lowermost~
front | rear back
inner | outer
""",
}
# Words that name a thing together: their first part says nothing of its look, or the look is the kind of thing.
NAMES = """
light_bulb light_switch light_fixture light_pole light_post light_show light_beam light_saber light_house
traffic_light street_light brake_light tail_light orange_juice orange_tree orange_peel orange_slice orange_slices
orange_segment orange_segments orange_wedge orange_soda ice_cream whipped_cream sour_cream cream_cheese cream_sauce
cream_pie rose_bush rose_garden rose_petal rose_petals olive_oil olive_tree olive_branch peach_tree plum_tree
cherry_tree cherry_blossom cherry_blossoms cherry_tomato cherry_tomatoes lime_wedge lime_slice lemon_slice lemon_wedge
lemon_juice lemon_tree salmon_fillet chocolate_cake chocolate_chip chocolate_sauce chocolate_bar chocolate_milk
caramel_sauce honey_jar tin_can tin_foil rubber_duck rubber_band silver_medal gold_medal bronze_medal wine_bottle
wine_bottles wine_glass wine_glasses red_wine white_wine black_pepper green_bean green_beans green_tea green_onion
green_onions green_pepper green_house white_house black_board white_board blue_cheese blue_jay blue_whale red_panda
red_fox black_bear brown_bear polar_bear blue_print brown_rice white_rice white_bread brown_sugar red_cross hot_dog
hot_tub flat_screen high_chair high_heel high_heels high_school little_girl little_girls little_boy little_boys
little_kid little_child little_one big_ben wood_stove wood_chips wood_pile paper_towel paper_towels paper_clip
straw_berry glass_of glasses_of snow_man snow_board ash_tray coral_reef mint_leaf mint_leaves mint_tea sage_leaves
mustard_seed mustard_bottle lavender_field jade_plant denim_jeans iron_man ironing_board steel_drum brass_band
brass_instrument copper_head fire_place square_foot square_feet square_meter round_about full_moon full_body
full_length dry_cleaner raw_hide open_air old_fashioned new_year new_york short_cut short_bread long_board long_horn
long_jump low_light back_yard back_pack back_ground back_drop right_now front_yard front_door back_door front_desk
top_hat bottom_line upper_body lower_body front_end rear_view rear_end clear_sky clear_skies dark_room dark_chocolate
milk_chocolate silver_ware pearl_necklace pearl_earring pearl_earrings pearl_necklaces even_full light_weight
light_rail light_source light_sources light_reflection pitch_black soft_drink soft_drinks soft_ball hard_hat hard_ware
hard_wood hard_disk sharp_focus soft_focus soft_light soft_lighting bright_light bright_lights bright_sunlight
raw_material wire_fence barbed_wire tin_roof violet_flowers full_bloom full_frame wood_grain wood_fire charcoal_grill
small_talk
"""

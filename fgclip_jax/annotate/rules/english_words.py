"""Closed classes of English words, and the open ones that a splitter of captions must know."""

DETERMINERS = frozenset("a an the this that these those each every another any some no both all either neither".split())
POSSESSIVES = frozenset("his her its their our your my whose".split())
NUMBERS = frozenset(
  "one two three four five six seven eight nine ten eleven twelve twenty dozens several many few various multiple "
  "numerous more most much other".split()
)
PRONOUNS = frozenset(
  "i you he she it we they me him us them who whom what which himself herself itself themselves someone something "
  "anyone anything everyone everything nothing nobody others one ones mine hers theirs there here each another all "
  "both this that these those none".split()
)
PREPOSITIONS = frozenset(
  "of in on at by for with without from to into onto upon over under above below beneath underneath beside besides "
  "between among amid around about across along against behind near next through throughout toward towards within "
  "inside outside before after during as like than off down up out past per via despite beyond opposite amidst "
  "alongside atop since until till except unlike".split()
)
CONJUNCTIONS = frozenset(
  "and or but nor so yet while where when because although though if whereas whether once plus versus".split()
)
AUXILIARIES = frozenset(
  "is are was were be been being am has have had having do does did could will would shall should may might must "
  "isn't aren't wasn't weren't doesn't don't didn't can't cannot won't it's that's there's he's she's they're".split()
)
ADVERBS = frozenset(
  "not such very too also just only still again already almost quite rather even ever never perhaps maybe else away "
  "together apart forward forwards backward backwards upward upwards downward downwards sideways inward outward "
  "indoors outdoors nearby here there then thus otherwise oddly moreover meanwhile further instead ahead aside "
  "afterwards overall altogether however therefore somewhat mostly partly partially fully slightly mainly directly "
  "clearly neatly tightly loosely gently softly closely evenly freshly newly highly deeply brightly dimly "
  "entirely".split()
)
# Function words of other languages, which an English phrase has none of.
FOREIGN = frozenset(
  "un une le la les de des du der die das ein eine einen einem el los las una unos mit und avec et con y il lo gli "
  "della uno ein'e um uma os het een".split()
)
NEGATIONS = frozenset(
  "not no non never without nor neither none isn't aren't wasn't weren't doesn't don't lacks lacking except cannot "
  "can't anything nothing unlike".split()
)

# Base forms of verbs that captions use; `lay/laid` and the like are listed under IRREGULAR.
VERBS = frozenset(
  (
    "stand look appear seem hang rest lean face gaze stare smile point reach rise fall grow climb crawl perch "
    "dominate fill occupy surround frame cover feature display depict show present reveal suggest create add cast "
    "reflect mirror catch hold carry wear grip clutch touch feed read sit lie lay sleep walk run ride drive fly swim "
    "jump play throw kick hit pull push open extend stretch wind bend curl twist fan flare taper end begin emerge "
    "peek peer protrude project stick drape pin tie wrap attach mount connect join separate divide contrast blend "
    "match complement highlight illuminate light glow shine gleam glisten shimmer sparkle recede fade blur dissolve "
    "drop dangle float drift spread scatter dot line flank border edge overlap overlook tower loom arch span cross "
    "cut form make give lend take turn tilt angle sweep spill flow pour splash hint indicate imply evoke convey "
    "capture include contain consist house support lead let keep stay remain continue follow enter leave meet pass "
    "move travel park stop wait watch see hear speak talk sing dance eat drink cook serve sell buy work write draw "
    "paint build demonstrate use operate raise lower lift crouch kneel squat hover nestle nest cling drip soak dry "
    "burn bloom blossom grin laugh frown bow nod wave gesture pose decorate adorn mark label print say spell bear "
    "sport come go get put set shed obscure hide conceal expose stack pile arrange gather crowd cluster pack cram "
    "crown top accompany accentuate enhance emphasize emphasise provide offer allow help invite dip curve slope slant "
    "jut slide glide race graze roam wander sniff lick bite chew snow rain belong dwarf echo encircle enclose hug "
    "nearly overflow overhang sprout stem stripe trail trim veil wash yawn relax enjoy prepare flash bounce balance "
    "surf ski skate approach roll poke merge tug shift combine trace thin mimic pick outline pedal straddle soften "
    "descend litter steady produce bury complete resemble press droop loop coil cloud darken"
  ).split()
)
IRREGULAR = frozenset(
  "stood sat lay laid lain hung held wore worn drew drawn threw thrown fell fallen grew grown rose risen spread shed "
  "shone lit bent wound made gave given took taken kept left met seen saw spoke spoken sang ate eaten drove driven "
  "rode hidden torn broken woven bound ridden flew flown ran swum built wrote written put cut set got went gone came "
  "become became shown known".split()
)
# Nouns that look like forms of verbs.
NOUNS_IN_ING = frozenset(
  "building ceiling clothing painting railing wing ring string king thing evening morning lightning awning bedding "
  "flooring lettering wedding icing topping stuffing siding paving netting crossing parking opening drawing swing "
  "sling spring earring herring wiring lighting fencing covering clearing landing padding lining piping tubing "
  "writing dressing filling frosting dwelling stocking duckling sapling seedling being offspring shilling wring "
  "pudding meeting setting dumpling pending engraving carving marking markings stitching shading planking decking "
  "cladding roofing packaging bunting sibling sterling darling starling cutting greeting spacing grating molding "
  "moulding coating edging trimming framing rigging mottling speckling".split()
)
# Words in -ly that are no adverbs.
NOT_ADVERBS = frozenset(
  "family belly lily butterfly jelly fly bully ally assembly anomaly monopoly italy july dolly trolley holly gully "
  "lovely friendly curly woolly wooly bubbly early only silly ugly lively elderly hilly wrinkly prickly frilly "
  "bristly burly scaly oily smelly spindly dragonfly firefly daily weekly".split()
)
NOUNS_IN_ED = frozenset("bed seed shed weed reed sled red feed need breed hundred speed steed deed watershed".split())
NOUNS_LIKE_VERBS = frozenset(  # their plural is a noun unless a subject with an article is before it
  "face point light frame cover line dot top edge border fan arch cut form stack pile cluster crowd mark label print "
  "house nest plant wave display mirror drink park paint stem stripe trail trim span pin tie wrap bow match drop "
  "slope curve flash beam leave blossom bloom curl pose grip scatter splash taste smell crown veil highlight burn "
  "surf ski skate".split()
)
# Verbs whose base form is no usual noun: `the edges dissolve into`.
CLEAR_VERBS = frozenset(
  "appear seem hang lean stare gaze grow crawl perch dominate fill occupy surround depict reveal suggest create add "
  "cast reflect catch hold carry wear read sit lie fly swim throw push pull open extend twist flare taper begin "
  "emerge peek protrude stick attach connect join separate divide contrast complement illuminate glow shine gleam "
  "glisten shimmer sparkle recede fade blur dissolve dangle float drift spread overlap overlook loom give lend take "
  "tilt spill flow pour imply evoke convey contain consist support lead let keep stay remain continue follow enter "
  "leave meet pass move travel stop wait see hear speak talk sing eat serve sell buy write draw build demonstrate use "
  "operate raise lower lift crouch kneel hover nestle cling drip bloom grin laugh frown decorate adorn spell bear "
  "come go get put obscure hide conceal expose arrange gather cram accompany accentuate enhance emphasize emphasise "
  "provide allow invite jut slide glide graze roam wander bite belong encircle enclose overflow overhang relax enjoy "
  "prepare become melt poke merge mimic combine soften descend produce bury resemble droop drape shift darken run "
  "stand stretch rise fall".split()
)
# Verbs whose -ing form takes an object without article: `wearing sunglasses`.
TAKES_OBJECT = frozenset(
  "wearing holding showing carrying riding eating facing featuring displaying having using playing reading watching "
  "drinking selling making forming casting creating revealing containing including covering surrounding gripping "
  "touching pulling pushing throwing catching serving supporting giving adding exposing reflecting bearing taking "
  "seeing".split()
)

# What no box can be drawn around, or what the picture as a whole is.
STOP_HEADS = frozenset(
  "image picture photo photograph photography snapshot shot close-up closeup background foreground backdrop scene "
  "scenery view side sides front back top bottom left right middle center centre edge corner area part parts kind "
  "sort type light lights lighting shadow shadows mood time atmosphere sense feel feeling effect impression look "
  "appearance style composition perspective angle focus frame distance direction contrast detail details depth tone "
  "tones colour colours color colors texture textures hue hues shade shades pattern patterns shape shapes size length "
  "width height position way variety number lot lots amount half portion section rest end ends day night evening dusk "
  "dawn daylight sunlight sunshine weather air space presence expression pose motion movement moment setting "
  "environment surroundings profile viewer camera contents addition order place use example case fact thing things "
  "glare glow highlight highlights reflection reflections quality interior exterior exposure season summer winter "
  "autumn spring image's picture's series range mix array collection combination touch hint others midst surface "
  "material materials layer layers line lines row rows word words text".split()
)
# Nouns of amount: `a pair of buds` is about buds.
AMOUNTS = frozenset(
  "pair couple group bunch row cluster pile stack set number lot lots piece pieces slice slices crowd herd flock "
  "collection line series bundle heap handful dozen dozens variety rows groups clusters pairs stacks piles bowl cup "
  "glass plate trio patch patches sheet sheets strip strips".split()
) - frozenset("bowl cup glass plate".split())
PEOPLE = frozenset(
  "man men woman women boy boys girl girls person people child children kid kids baby babies lady ladies guy guys "
  "player players skier surfer rider cyclist passenger bride groom chef worker driver student teacher officer soldier "
  "couple family friend friends crowd toddler teenager gentleman figure hiker skater batter pitcher catcher".split()
)

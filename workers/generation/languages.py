"""Languages: the language of a text, its function words, and its sentence for "nothing was found".

`language_of` looks at the script first; if several languages share it, at function words and at
letters that only one of them has. It knows the languages below; a text in another language, or
without letters, counts as English. It is made for questions: in a text that mixes languages it
returns the language of the sentence. It needs no model and no dictionary.

Each language is one record.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from shared.bounds import comparable


@dataclass(frozen=True, kw_only=True)
class Language:
    code: str
    """BCP 47."""
    not_found: str
    """What answers a question that the passages do not answer."""
    function_words: frozenset[str] = frozenset()
    """In the form of `comparable`; question words are among them."""
    letters: frozenset[str] = frozenset()
    """Letters, in the form of `comparable`, that speak for this language within its script."""
    has_ordinal_dots: bool = False
    """Whether "3." within a sentence is "third"."""


def _language(
    code: str,
    not_found: str,
    function_words: str = "",
    *,
    letters: str = "",
    has_ordinal_dots: bool = False,
) -> Language:
    return Language(
        code=code,
        not_found=not_found,
        function_words=frozenset(comparable(function_words).split()),
        letters=frozenset(comparable(letters)),
        has_ordinal_dots=has_ordinal_dots,
    )


ENGLISH: Final = _language(
    "en",
    "Nothing relevant to this question was found in the collection.",
    "a an the this that these those it its it's he him his she her hers they them their theirs we "
    "us our ours you your yours i me my mine who whom whose which what when where why how is am "
    "are was were be been being do does did done doing have has had having can could will would "
    "shall should may might must of in on at by to from for with without into onto about as than "
    "then there here and or but nor not no so if because while during between among through over "
    "under after before up down out off again also just only very too any some each every all "
    "both many much more most other another such own same s t d ll m re ve don't doesn't didn't "
    "isn't aren't wasn't weren't can't won't one ones please tell give name list explain describe "
    "show find mean means called",
)
KOREAN: Final = _language("ko", "이 컬렉션에서 질문과 관련된 내용을 찾지 못했습니다.")
CHINESE: Final = _language("zh", "在此集合中未找到与该问题相关的内容。")
TRADITIONAL_CHINESE: Final = _language("zh-Hant", "在此集合中找不到與該問題相關的內容。")
JAPANESE: Final = _language(
    "ja", "このコレクションには、質問に関連する内容が見つかりませんでした。"
)
VIETNAMESE: Final = _language(
    "vi",
    "Không tìm thấy nội dung nào liên quan đến câu hỏi này trong bộ sưu tập.",
    "là và hoặc hay nhưng không có được bị của cho với từ trong ngoài trên dưới ở tại đến về "
    "khi nào đâu ai gì cái nào sao tại vì thế như bao nhiêu mấy các những một này đó đã đang "
    "sẽ thì mà để bởi do theo cũng rất vào ra lên xuống nó họ",
    letters="ơưđảẩẳẻểỉỏổởủửỷạậặẹệịọộợụựỵấầẫắằẵếềễốồỗớờỡứừữẽỹỳ",
)

_LATIN: Final = (
    ENGLISH,
    _language(
        "de",
        "In dieser Sammlung wurde zu dieser Frage nichts gefunden.",
        "der die das den dem des ein eine einen einem einer eines und oder aber nicht kein keine "
        "ist sind war waren wird werden wurde wurden worden hat haben hatte hatten sein seine ihr "
        "ihre er sie es wir ihr ich du man sich in im an am auf aus bei beim mit nach von vom vor "
        "zu zum zur über unter durch für gegen um als wie was wer wen wem wessen wann wo woher "
        "wohin womit wodurch warum weshalb wieso welche welcher welches welchen welchem viel "
        "viele vielen dass wenn auch noch nur so da dort hier dieser diese dieses diesem diesen "
        "kann können konnte soll muss darf gibt gab es bis seit zwischen während",
        letters="äöü",
        has_ordinal_dots=True,
    ),
    _language(
        "fr",
        "Aucun contenu pertinent pour cette question n'a été trouvé dans cette collection.",
        "le la les l un une des du de d au aux et ou mais ne pas ni est sont était étaient être "
        "été a ont avait avaient avoir sera il elle ils elles on nous vous je tu se s ce cette "
        "ces cet c son sa ses leur leurs dans en sur sous par pour avec sans chez vers entre "
        "depuis pendant qui que qu quoi dont où quand comment pourquoi combien quel quelle quels "
        "quelles plus moins très aussi comme si y lui qu'est qu'il",
        letters="çèêœùâîû",
    ),
    _language(
        "es",
        "No se encontró nada relacionado con esta pregunta en la colección.",
        "el la los las un una unos unas de del al y o u pero no ni es son era eran fue fueron ser "
        "sido está están estaba ha han había hay se su sus lo le les él ella ellos ellas nos yo "
        "tú en a con sin por para sobre entre desde hasta durante según que qué quién quiénes "
        "quien cuál cuáles cuándo dónde cómo cuánto cuánta cuántos cuántas cuando donde como "
        "porque más menos muy también este esta estos estas ese esa eso puede pueden tiene",
        letters="ñ¿¡",
    ),
    _language(
        "pt",
        "Nada relacionado a esta pergunta foi encontrado na coleção.",
        "o a os as um uma uns umas de do da dos das no na nos nas ao à aos às e ou mas não nem é "
        "são era eram foi foram ser sido está estão estava há se seu sua seus suas lhe ele ela "
        "eles elas nós eu em com sem por pelo pela pelos pelas para sobre entre desde até durante "
        "que quê quem qual quais quando onde como quanto quanta quantos quantas porque por mais "
        "menos muito também este esta estes estas esse essa isso pode podem tem",
        letters="ãõ",
    ),
    _language(
        "it",
        "Nella raccolta non è stato trovato nulla di pertinente a questa domanda.",
        "il lo la i gli le l un uno una di del dello della dei degli delle d a al alla ai agli "
        "alle da dal dalla dai in nel nella nei nelle con su sul sulla per tra fra e ed o ma non "
        "è sono era erano fu furono essere stato stata stati ha hanno aveva si suo sua suoi loro "
        "egli lui lei noi voi io che chi cui quale quali quando dove come perché quanto quanta "
        "quanti quante cosa cos più meno molto anche questo questa questi può possono ci c",
        letters="ìò",
    ),
    _language(
        "nl",
        "In deze collectie is niets gevonden over deze vraag.",
        "de het een en of maar niet geen is zijn was waren wordt worden werd werden geworden "
        "heeft hebben had hadden zijn hun haar hij zij ze wij we ik je jij u men zich in op aan "
        "uit bij met naar van voor na tot over onder door tegen om als dan dat die dit deze wie "
        "wat wanneer waar waarom hoe hoeveel welk welke ook nog er te kan kunnen tussen tijdens",
    ),
    _language(
        "sv",
        "Inget som rör frågan hittades i samlingen.",
        "en ett den det de och eller men inte är var vara varit blir blev har hade sin sitt sina "
        "hans hennes deras han hon vi jag du man sig i på av för från med till om under över vid "
        "som att vad vem vilka vilken vilket när var varför hur många mycket också kan ska",
        letters="åäö",
    ),
    _language(
        "da",
        "Der blev ikke fundet noget relevant for dette spørgsmål i samlingen.",
        "en et den det de og eller men ikke er var være været bliver blev har havde sin sit sine "
        "hans hendes deres han hun vi jeg du man sig i på af for fra med til om under over ved "
        "som at hvad hvem hvilken hvilket hvilke hvornår hvor hvorfor hvordan mange meget også "
        "kan skal",
        letters="æøå",
        has_ordinal_dots=True,
    ),
    _language(
        "fi",
        "Kokoelmasta ei löytynyt mitään tähän kysymykseen liittyvää.",
        "ja tai mutta ei on oli ovat olivat olla ollut se ne hän he tämä nämä joka jotka mikä mitä "
        "mitkä kuka kenen ketkä milloin koska missä mistä mihin miksi miten kuinka paljon monta "
        "että kun jos myös vain kanssa",
        letters="äö",
        has_ordinal_dots=True,
    ),
    _language(
        "pl",
        "W tym zbiorze nie znaleziono niczego związanego z tym pytaniem.",
        "i oraz lub albo ale nie jest są był była było były być został została jego jej ich on ona "
        "ono oni się w we na z ze do od o po przez przy dla za pod nad przed między to ten ta te "
        "tego tej tym który która które których kto kogo co czego czym kiedy gdzie dlaczego jak "
        "jaki jaka jakie ile czy też tylko że",
        letters="ąćęłńśźż",
        has_ordinal_dots=True,
    ),
    _language(
        "cs",
        "V této sbírce nebylo k této otázce nic nalezeno.",
        "a i nebo ale ne je jsou byl byla bylo byli být jeho její jejich on ona ono oni se si v ve "
        "na z ze do od o po při pro za pod nad před mezi to ten ta ty toho té který která které "
        "kdo koho co čeho čím kdy kde proč jak jaký jaká jaké kolik také jen že",
        letters="ěřůčň",
        has_ordinal_dots=True,
    ),
    _language(
        "hu",
        "A gyűjteményben nem található a kérdéshez kapcsolódó tartalom.",
        "a az egy és vagy de nem van volt voltak lesz ő ők ez azok ezek aki ami amely ki kik mi "
        "mit mikor hol hova honnan miért hogyan hány mennyi melyik milyen is csak hogy mint után",
        letters="őű",
        has_ordinal_dots=True,
    ),
    _language(
        "ro",
        "În această colecție nu s-a găsit nimic legat de această întrebare.",
        "un o unei unui unor al a ai ale cel cea cei cele și sau dar nu este sunt era erau a fost "
        "fi au avea își se său sa săi lor lui ei el ea ele noi eu în din pe la cu fără de despre "
        "pentru prin între până după ce cine care când unde cum cât câtă câți câte cui mai foarte "
        "acest această acești aceste poate pot",
        letters="ăâîșțşţ",
    ),
    _language(
        "tr",
        "Bu koleksiyonda soruyla ilgili bir şey bulunamadı.",
        "bir ve veya ama değil bu şu o onun onlar biz ben sen ile için gibi kadar göre sonra önce "
        "ne neden niçin nasıl nerede nereden nereye hangi hangisi kim kimi kimin kaç ne zaman mi "
        "mı mu mü nedir kimdir kaçtır neresidir kadardır da de ki çok daha en olarak olan oldu idi "
        "var yok",
        letters="ğış",
    ),
    VIETNAMESE,
    _language(
        "id",
        "Tidak ditemukan hal yang terkait dengan pertanyaan ini dalam koleksi.",
        "yang dan atau tetapi tidak bukan adalah ialah ini itu di ke dari pada untuk dengan oleh "
        "dalam sebagai apa siapa kapan mana dimana mengapa kenapa bagaimana berapa apakah ada "
        "telah sudah akan bisa dapat juga para mereka kami kita saya anda ia dia",
    ),
)
_CYRILLIC: Final = (
    _language(
        "ru",
        "В этой коллекции не найдено ничего, что относится к вопросу.",
        "и или но а не ни в во на с со к ко о об от до из за по под над при для без между через "
        "после перед у это этот эта эти тот та те то он она оно они мы вы я его её ее их им ему "
        "ей был была было были быть есть является являются что чего чем кто кого кем кому когда "
        "каков какова каково каковы где куда откуда почему зачем как какой какая какое какие "
        "каких каким сколько который которая которое которые чей чья ли же бы "
        "также только ещё еще уже",
        letters="ыэё",
    ),
    _language(
        "uk",
        "У цій колекції не знайдено нічого, що стосується запитання.",
        "і й та або але а не ні в у на з із зі до від о об про за по під над при для без між через "
        "після перед це цей ця ці той ті він вона воно вони ми ви я його її їх був була було були "
        "бути є що чого чим хто кого ким кому коли де куди звідки чому навіщо як який яка яке які "
        "яких скільки чий чи ж би також тільки ще вже",
        letters="іїєґ",
    ),
    _language(
        "bg",
        "В тази колекция не е намерено нищо свързано с въпроса.",
        "и или но не в във на с със към от до из за по под над при без между през след пред у това "
        "този тази тези той тя то те ние вие аз му ѝ им е са беше бяха съм какво кой коя кое кои "
        "кога къде защо как какъв каква какви колко който която което които дали също само още",
        letters="ъ",
    ),
)
_ARABIC: Final = (
    _language(
        "ar",
        "لم يُعثر في هذه المجموعة على ما يتعلق بهذا السؤال.",
        "في من إلى الى على عن مع بين منذ حتى خلال بعد قبل عند و أو او ثم لا لم لن ليس هو هي هم هذا "
        "هذه ذلك تلك الذي التي الذين كان كانت يكون تكون أن ان إن قد ما ماذا من متى أين اين كيف "
        "لماذا كم أي اي أية هل به بها له لها فيه فيها",
        letters="ةأإ",
    ),
    _language(
        "fa",
        "در این مجموعه چیزی مرتبط با این پرسش یافت نشد.",
        "و یا اما در از به با برای تا بر که را این آن است بود بودند شد شده می چه چی کی کجا چرا "
        "چگونه چطور چند چقدر کدام آیا هم نیز او آنها یک",
        letters="پچژگکی",
    ),
    _language(
        "ur",
        "اس مجموعے میں اس سوال سے متعلق کچھ نہیں ملا۔",
        "اور یا لیکن میں سے کو کا کی کے پر تک نے ہے ہیں تھا تھے تھی یہ وہ اس ان کیا کون کب کہاں "
        "کیوں کیسے کتنا کتنے کتنی کس جو بھی نہیں",
        letters="ٹڈڑےںہھ",
    ),
)
_HEBREW: Final = (
    _language(
        "he",
        "לא נמצא באוסף דבר הקשור לשאלה זו.",
        "של את על עם אל מן בין לפני אחרי או אבל לא הוא היא הם הן זה זאת אלה היה היתה הייתה היו מה "
        "מי מתי איפה היכן לאן למה מדוע איך כיצד כמה איזה איזו אילו האם גם רק כי אשר",
    ),
)
_GREEK: Final = (
    _language(
        "el",
        "Δεν βρέθηκε τίποτα σχετικό με αυτή την ερώτηση στη συλλογή.",
        "ο η το οι τα του της των τον την τους τις στο στη στην στον στους στις στα ένας μια μία "
        "ένα και ή αλλά δεν μη να θα είναι ήταν έχει έχουν είχε από με σε για κατά μετά πριν προς "
        "μεταξύ τι ποιος ποια ποιο ποιοι ποιες ποιον πότε πού που πώς πως γιατί πόσο πόσα πόσοι "
        "πόσες ότι αυτό αυτή αυτός αυτά",
    ),
)
_DEVANAGARI: Final = (
    _language(
        "hi",
        "इस संग्रह में इस प्रश्न से संबंधित कुछ नहीं मिला।",
        "का की के को में से पर तक ने और या लेकिन नहीं है हैं था थी थे हो होता होती होते गया गई गए "
        "यह वह ये वे इस उस इन उन जो क्या कौन किस किसने किसे किसका किसकी कब कहाँ कहां क्यों कैसे "
        "कितना कितने कितनी कौनसा सा सी भी ही एक लिए द्वारा साथ किया कर करने",
    ),
)
_BENGALI: Final = (_language("bn", "এই সংগ্রহে এই প্রশ্নের সাথে সম্পর্কিত কিছু পাওয়া যায়নি।"),)
_TAMIL: Final = (_language("ta", "இந்தத் தொகுப்பில் இந்தக் கேள்வி தொடர்பான எதுவும் கிடைக்கவில்லை."),)
_THAI: Final = (_language("th", "ไม่พบเนื้อหาที่เกี่ยวข้องกับคำถามนี้ในคอลเลกชัน"),)

# A letter of a script -> the languages that are written in it; the first where nothing decides.
_SCRIPTS: Final = (
    (re.compile(r"[a-zà-öø-ÿā-ɏḁ-ỿ]"), _LATIN),
    (re.compile(r"[Ѐ-ԯ]"), _CYRILLIC),
    (re.compile(r"[ء-ي٠-ۓ]"), _ARABIC),
    (re.compile(r"[א-ת]"), _HEBREW),
    (re.compile(r"[ά-ώα-ωἀ-ῼ]"), _GREEK),
    (re.compile(r"[ऄ-ह]"), _DEVANAGARI),
    (re.compile(r"[অ-হ]"), _BENGALI),
    (re.compile(r"[அ-ஹ]"), _TAMIL),
    (re.compile(r"[ก-ฮ]"), _THAI),
)
LANGUAGES: Final = (
    KOREAN, CHINESE, TRADITIONAL_CHINESE, JAPANESE,
    *(language for _, languages in _SCRIPTS for language in languages),
)  # fmt: skip

_WORD: Final = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
# As in `_WORD`, but with vowel signs, which are no word characters to `re`.
_INDIC_WORD: Final = re.compile(r"[ऀ-ॣ]+")
_HANGUL_WORD: Final = re.compile(r"[ᄀ-ᇿ가-힣]+")
_KANA: Final = re.compile(r"[぀-ヿㇰ-ㇿ]+")
_HAN: Final = re.compile(r"[々〇㐀-䶿一-鿿豈-﫿\U00020000-\U0003ffff]")
_KOREAN_ENDING: Final = re.compile(
    r"(?:[은는이가을를의에로와과]|에서|까지|부터|입니까|습니까|나요|가요|까요|인가|는가|세요|예요|"
    r"이란|란|하면|려면|해줘|[다요까나죠])$"
)
# Characters that only one of the two ways of writing Chinese has, of the most frequent ones.
_SIMPLIFIED: Final = re.compile("[这们个来说国会为时后没吗么里对与开学从谁电话发现见长门问间车东]")
_TRADITIONAL: Final = re.compile("[這們個來說國會為時後沒嗎麼裡對與開學從誰電話發現見長門問間車東]")
_CHINESE_FUNCTION: Final = re.compile("[的是在了和与與吗嗎呢谁誰哪几幾多么麼什为為有]")


def language_of(text: str) -> Language:
    """English where the text has no word of a language that this module knows.

    Of a long text the beginning decides.
    """
    return _language_of(text[:_WITHIN_CHARS])


_WITHIN_CHARS: Final = 1000


@lru_cache(1024)
def _language_of(text: str) -> Language:
    text = comparable(text)
    foreign = _east_asian(text)
    counts = [(len(letter.findall(text)), languages) for letter, languages in _SCRIPTS]
    letters, languages = max(counts, key=lambda one: one[0])
    if foreign is not None:
        language, weight = foreign
        if languages is not _LATIN or letters == 0:
            return language
        # Texts of these languages are full of Latin names; sentences of others seldom quote them.
        return language if weight >= _function_words(text, ENGLISH) else ENGLISH
    if letters == 0:
        return ENGLISH
    return _best(text, languages)


def not_found_sentences() -> Iterable[str]:
    return (language.not_found for language in LANGUAGES)


def _east_asian(text: str) -> tuple[Language, int] | None:
    """The language, and how many of its function words there are."""
    if words := _HANGUL_WORD.findall(text):
        return KOREAN, sum(_KOREAN_ENDING.search(word) is not None for word in words)
    if runs := _KANA.findall(text):
        return JAPANESE, len(runs)
    if not _HAN.search(text):
        return None
    traditional, simplified = (len(one.findall(text)) for one in (_TRADITIONAL, _SIMPLIFIED))
    language = TRADITIONAL_CHINESE if traditional > simplified else CHINESE
    return language, len(_CHINESE_FUNCTION.findall(text))


def _best(text: str, languages: tuple[Language, ...]) -> Language:
    words = _words(text)
    letters = set(text)

    def evidence(language: Language) -> float:
        counted = sum(word in language.function_words for word in words)
        return counted + _LETTER * len(letters & language.letters)

    return max(languages, key=evidence)  # the first of equal ones


# Less than a function word: names bring letters of other languages with them.
_LETTER: Final = 0.7


def _words(text: str) -> list[str]:
    """In their order. Of "l'ufficio" there is the article, too."""
    text = text.replace("’", "'")
    words = _INDIC_WORD.findall(text) or _WORD.findall(text)
    return words + [word.partition("'")[0] for word in words if "'" in word]


def _function_words(text: str, language: Language) -> int:
    return sum(word in language.function_words for word in _words(text))

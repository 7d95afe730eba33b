"""The model reference `extractive`: answers with the sentences that best answer the question.

One to three sentences are quoted from the passages, one per line, each followed by the marker of
its passage: `[1]`, `[2]` in the order of first use. A quote is verbatim, with four exceptions: runs
of whitespace become one space; the text is in the normal form NFC; references such as "[3]" after a
punctuation mark are left out, since they would look like markers; and of a sentence longer than
about 400 characters only the part that matches best is quoted, with an ellipsis at each cut. No
language model writes anything.

Sentences are ranked by the question's informative terms in them and around them, by the retrieval
score of their passage, and by whether they have a number, a date or a name if the question asks for
one. Headings and titles count for the text below them, and are not quoted; neither is the furniture
of pages. If no sentence shares enough of those terms, the answer says so in the question's language
and cites nothing.

Words are matched, whatever their width, case and normal form; meanings are not: a Korean question
about an English passage finds only the names that both write in the same way. This module reads no
settings, loads no model and keeps no state.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final

from shared.bounds import comparable, nfc, nfkc
from workers.generation.languages import ENGLISH, VIETNAMESE, Language, language_of
from workers.retrieval.terms import terms

# A question -> keywords, each with the terms that a sentence may have for it.
#
# Terms are those of the lexical index (`workers/retrieval/terms.py`): words; the first letters of
# long words, which are a weaker match, since most languages inflect at the end; and overlapping
# pairs of characters in languages without spaces between words (Chinese, Japanese, Thai) and in
# Korean, whose words have particles. There is no dictionary and no morphological analysis: two
# forms that share no letters do not match.

_HAN_AND_KANA: Final = (
    "々〆〇぀-ヿ㇀-㇯ㇰ-ㇿ㐀-䶿一-鿿豈-﫿\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
# Thai, Lao, Myanmar and Khmer, with their vowel signs.
_SOUTHEAST_ASIAN: Final = "\u0e01-\u0e4e\u0e80-\u0ece\u1000-\u109f\u1780-\u17d3"
# Vowel signs of India's scripts, which `re` does not count as word characters; without the dandas.
_SIGNS: Final = "\u0900-\u0963\u0966-\u0dff"
_WORD: Final = re.compile(
    rf"\d+(?:[.,]\d+)+|[가-힣]+|[{_HAN_AND_KANA}]+|[{_SOUTHEAST_ASIAN}]+|"
    rf"(?:(?![가-힣{_HAN_AND_KANA}{_SOUTHEAST_ASIAN}])(?:[^\W_]|[{_SIGNS}]))+"
    r"(?:['’](?:s|t|d|m|re|ve|ll)(?![^\W_]))?"
)
_IS_HAN_OR_KANA: Final = re.compile(f"[{_HAN_AND_KANA}]")
_IS_SOUTHEAST_ASIAN: Final = re.compile(f"[{_SOUTHEAST_ASIAN}]")
# Texts whose terms say too little alone, so that each is also matched together with its neighbour:
# Vietnamese, which has spaces between syllables (only it has these letters), and pairs of letters
# of Thai.
_IS_JOINED: Final = re.compile(
    f"[ơưảẩẳẻểỉỏổởủửỷạậặẹệịọộợụựỵấầẫắằẵếềễốồỗớờỡứừữẽỹỳ{_SOUTHEAST_ASIAN}]"
)
_ARABIC_ARTICLE: Final = re.compile(r"(?:[وفبك]?ال|لل)(?=\w{3})")
_ARABIC_PREFIXES: Final = ("", "ال", "وال", "بال", "لل", "و")

# Words so frequent that they say little; they count, but less.
_ENGLISH_COMMON_WORDS: Final = (
    "use used using make made take took get got go went come came see say said know known think "
    "thing way time year day people person place part number kind type example new old "
    "first last long large great good well high small different important world life work state "
    "become became call include including since until within however often usually still even "
    "several various certain two three 1 2 3 become like need want happen help possible"
)
_ENGLISH_COMMON: Final = frozenset(_ENGLISH_COMMON_WORDS.split())
_KOREAN_COMMON_WORDS: Final = (
    "필요 이상 이하 전체 최소 최대 전 후 이용 가능 사용 방법 시간 사람 제일 정도 많은 많이 많 "
    "생각 지금 정말 여기 기준 종류 처음 사항 내용 문제 부분 현재 모두 다른 같은 바로 우리 사이 "
    "관련 기간"
)
_KOREAN_COMMON: Final = frozenset(_KOREAN_COMMON_WORDS.split())
_KOREAN_STOP_WORDS: Final = (
    "무엇 무엇인가 무엇인가요 무엇입니까 무엇을 뭐 뭔가 뭔가요 뭘 뭐야 뭐예요 뭐죠 무슨 누구 "
    "누가 누구인가 누구인가요 누구입니까 언제 언제인가 언제인가요 언제입니까 어디 어디인가 "
    "어디인가요 어디에 어디에서 어디서 어디입니까 왜 어떻게 어떤 어느 얼마 얼마나 얼마인가요 "
    "얼마입니까 몇 그리고 그러나 하지만 또는 및 이 그 저 것 수 등 때 더 가장 매우 아주 잘 못 "
    "안 좀 알려줘 알려주세요 설명해줘 설명해주세요 있나요 있습니까 있는가 있는 있다 있습니다 "
    "있을까 있을까요 없나요 없다 없습니다 하나요 합니까 하는가 하는 한다 합니다 할까 할까요 "
    "했나요 했습니까 하면 되나요 됩니까 되는 된다 됩니다 되었나요 됐나요 인가 인가요 입니까 "
    "이다 입니다 대해 대한 대하여 관해 관한 위해 위한 통해 따라 경우 무엇이 무엇이며 해야 "
    "해야하나요 하려면 주세요 줘 뭐라고 뭐라 몇몇 개 번 명 살 대 않은 않는 않고 않다 않나요 아닌 "
    "이유 궁금 궁금합니다 궁금해요 가요 나요"
)
_KOREAN_STOP: Final = frozenset(_KOREAN_STOP_WORDS.split())
# Particles after the root of a noun, and endings after that of a verb or an adjective.
_KOREAN_ENDING: Final = re.compile(
    "(?:들|님)?(?:"
    "은|는|이|가|을|를|의|에|도|만|로|와|과|나|랑|요|에서|에게|에는|에도|에서는|에서도|에게는|"
    "으로|으로는|으로도|로는|로도|로서|로써|으로서|으로써|까지|부터|까지는|부터는|보다|보다는|"
    "처럼|마다|이나|이며|이고|이란|이라는|라는|이라고|라고|이라|한테|께서|께|이랑|인데|일까|일까요|"
    "인가|인가요|인지|인지요|입니까|입니다|이에요|예요|이야|야|이었다|였다|이었습니다|였습니다|"
    # The stem's own ending (하-, 되-, 시-, past), then the sentence's or the clause's.
    "(?:하|한|할|함|합|해|했|하였|하시|하셨|되|된|될|됨|됩|돼|됐|되었|시|셨|으시|으셨|었|았|였|겠|"
    "시키|시켰|당하|당했)*"
    "(?:습니다|습니까|니다|니까|나요|나|는가|는가요|는지|은지|가요|까|까요|어요|아요|에요|세요|네요|"
    "지요|죠|요|다|고|며|면|으면|려면|으려면|서|여|게|지|는|은|던|도록|려고|으려고|기|니|므로|지만|"
    "는데|거나|음|어|아|어서|아서|어야|아야|야|줘|는거야)?"
    ")$"
)
_KOREAN_PARTICLES: Final = frozenset("은는이가을를의에도만로와과")
_KOREAN_QUESTION_WORD: Final = re.compile(r"(?:무엇|누구|언제|어디|얼마|며칠|몇)")
# Question words of Chinese and Japanese: they say nothing, and separate the words beside them.
_EAST_ASIAN_QUESTION: Final = re.compile(
    "为什么|為什麼|什么|什麼|甚麼|多少|哪[些个個位里裡一种種年]?|谁|誰|几|幾|如何|怎么样?|怎麼樣?|"
    "怎样|怎樣|何时|何時|吗|嗎|呢|的|了|いくつ|いくら|いつ|どこ|どの|どんな|どれ|なぜ|なに|なん|"
    "だれ|ですか|ますか|でしたか|ましたか|何"
)
# Characters that are grammatical words if they stand alone, and parts of words elsewhere.
_EAST_ASIAN_COMMON: Final = frozenset(
    "是在有和与與及或被把由从從对對于於为為以其这這那之个個中上下不人次名位年月日一"
    + "".join(map(chr, range(0x3040, 0x30A0)))
)
_NUMBERS: Final = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBER_WORDS: Final = {word: str(value) for value, word in enumerate(_NUMBERS.split())}


@dataclass(frozen=True, kw_only=True)
class Keyword:
    """A word of the question, or one of its characters if words are matched by pairs of them."""

    terms: frozenset[str]
    """Any of them in a sentence is a full match."""
    weak: tuple[tuple[str, float], ...] = ()
    """Terms that are a partial match, and how much of one."""
    weight: float = 1.0


def terms_in(text: str) -> frozenset[str]:
    all_terms = terms(text)
    if not text.isascii() and _IS_JOINED.search(nfc(text).casefold()):
        all_terms += _joined(all_terms)
    return frozenset(all_terms)


def _joined(some: Sequence[str]) -> list[str]:
    """Each term together with the next one."""
    return [f"{one} {other}" for one, other in pairwise(some)]


def keywords_of(question: str) -> list[Keyword]:
    """What a sentence should share with the question, without repetitions."""
    plain = nfkc(question)
    language = language_of(plain)
    if language is VIETNAMESE:
        return list(dict.fromkeys(_with_neighbours(terms(plain))))
    is_all_capitals = plain.isupper()
    keywords: list[Keyword] = []
    for match in _WORD.finditer(plain):
        word = comparable(match[0]).replace("’", "'")
        if "가" <= word[0] <= "힣":
            keywords += _korean(word)
        elif _IS_HAN_OR_KANA.match(word):
            for part in filter(None, _EAST_ASIAN_QUESTION.split(word)):
                keywords += _characters(part)
        elif _IS_SOUTHEAST_ASIAN.match(word):
            keywords += _with_neighbours(terms(word))
        else:
            # US, IT and WHO are names, unless the whole text is in capitals.
            is_name = len(word) > 1 and match[0].isupper() and not is_all_capitals
            if is_name or word not in language.function_words:
                keywords += _word(word, language)
    return list(dict.fromkeys(keywords))


def _word(word: str, language: Language) -> Iterator[Keyword]:
    of_word = terms(word)
    if not of_word:
        return
    first, *parts = of_word
    same = {first}
    weight = 1.0
    if language is ENGLISH:
        same |= english_forms(first)
        weight = _COMMON_WORD if same & _ENGLISH_COMMON else 1.0
    elif _ARABIC_LETTER.match(first):
        same |= {prefix + _ARABIC_ARTICLE.sub("", first) for prefix in _ARABIC_PREFIXES}
    weak = () if first[0].isdigit() else tuple((part, _SAME_BEGINNING) for part in parts)
    yield Keyword(terms=frozenset(same), weak=weak, weight=weight)


_ARABIC_LETTER: Final = re.compile("[ء-ۓ]")


def _with_neighbours(some: Sequence[str]) -> Iterator[Keyword]:
    """A keyword for each term: a full match together with a neighbour, a weak match alone."""
    joined = _joined(some)
    for at, term in enumerate(some):
        if term not in VIETNAMESE.function_words:
            around = joined[max(0, at - 1) : at + 1] or [term]
            weak = ((term, _SAME_SYLLABLE),)
            yield Keyword(terms=frozenset(around), weak=weak, weight=_CHARACTER)


def _korean(word: str) -> Iterator[Keyword]:
    if word in _KOREAN_STOP:
        return
    root = korean_root(word)
    if root in _KOREAN_STOP or _KOREAN_QUESTION_WORD.match(root):
        return
    # The index also has the first syllable of each word: "집이" may be "집" with a particle, and
    # "열렸" a form of "열다".
    weak = ((root[0], _SAME_SYLLABLE),) if len(root) == 2 else ()
    weight = _COMMON_WORD if root in _KOREAN_COMMON else 1.0
    yield from _characters(root, weak=weak, weight=weight)


def _characters(
    run: str, *, weak: tuple[tuple[str, float], ...] = (), weight: float = 1.0
) -> Iterator[Keyword]:
    """A keyword for each character of a longer run, matched by either pair that it is in.

    So it costs nothing if a sentence lacks a pair across the border of two words.
    """
    pairs = terms(run)[: max(1, len(run) - 1)]
    if len(run) <= 2:
        yield Keyword(terms=frozenset(pairs), weak=weak, weight=_CHARACTER * len(run) * weight)
        return
    for at, character in enumerate(run):
        common = _COMMON_CHARACTER if character in _EAST_ASIAN_COMMON else 1.0
        yield Keyword(
            terms=frozenset(pairs[max(0, at - 1) : at + 1]),
            weak=weak,
            weight=_CHARACTER * common * weight,
        )


_ENGLISH_SUFFIXES: Final = ("s", "es", "ed", "d", "ing", "er", "ly")
_NUMBER_DIGITS: Final = {digits: word for word, digits in _NUMBER_WORDS.items()}


def english_forms(word: str) -> set[str]:
    """Possible forms of the word, not all of them words: the index has words without stemming."""
    forms = {word, _NUMBER_WORDS.get(word, word), _NUMBER_DIGITS.get(word, word)}
    if len(word) < 3 or not word.isascii() or not word.isalpha():
        return forms
    stems = {word}
    for suffix in _ENGLISH_SUFFIXES:
        stem = word.removesuffix(suffix)
        if stem != word and len(stem) >= 3:
            stems |= {stem, stem + "e"} if suffix not in ("s", "d") else {stem}
            if stem[-1] == stem[-2]:
                stems.add(stem[:-1])
    if word.endswith("ies"):
        stems.add(word[:-3] + "y")
    for stem in stems:
        forms |= {stem + suffix for suffix in ("", *_ENGLISH_SUFFIXES)}
        forms |= {stem + stem[-1] + suffix for suffix in ("ed", "ing", "er")}
        if stem[-1] == "e":
            forms |= {stem[:-1] + "ing"}
        if stem[-1] == "y":
            forms |= {stem[:-1] + "ies", stem[:-1] + "ied"}
    return forms


def korean_root(word: str) -> str:
    """The word without its particle or ending, if at least two syllables are left."""
    for end in range(2, len(word)):
        if _KOREAN_ENDING.match(word, end):
            return word[:end]
    return word


# A passage -> its sentences, for prose in any language and for the lines of documents.
#
# List items, rows of tables and lines of code are sentences of their own; the lines of a
# hard-wrapped paragraph are joined first; the "column: value" lines of a record stay together.
# Rules and other lines without a letter or digit are left out. Headings and the furniture of pages
# (menus, tables of contents, page numbers, legal notices) are recognized. A sentence says whether
# the edge of the passage cut it. There is no model, and no language data but the lists below.


class PagePart(StrEnum):
    """The role of a sentence in its page."""

    TEXT = "text"
    BARE = "bare"
    """A short line without punctuation at its end, between blank lines: a heading, or a short
    text."""
    HEADING = "heading"
    TABLE_HEADER = "table_header"
    NOTICE = "notice"
    """About copyright or cookies: furniture, unless the question is about these."""
    FURNITURE = "furniture"


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """`text` is a slice of the passage, with runs of whitespace collapsed to one space."""

    text: str
    part: PagePart = PagePart.TEXT
    is_cut: bool = False  # it begins before the passage, or ends after it
    header: str = ""
    """Of a row in a table: the row that names its columns, where there is one."""


_ABBREVIATED: Final = (
    "mr mrs ms dr prof st sr jr vs etc eg ie e.g i.e cf al fig figs eq no nos vol pp p ch sec "
    "inc ltd co corp dept est approx ca gen col lt sgt capt rev hon gov sen rep pres mt ft ave "
    "blvd rd u.s u.k u.n a.m p.m ph.d b.c a.d jan feb mar apr jun jul aug sep sept oct nov dec "
    "resp incl excl max min viz esp "
    # German, French, Spanish and Portuguese, Russian
    "bzw usw nr str sog vgl evtl ggf inkl z.b d.h u.a jh mio mrd mme mlle m.m "
    "sra srta dra núm pág art av гг вв им млн млрд тыс руб ул др пр обл т.е т.д т.п н.э"
)
_ABBREVIATIONS: Final = frozenset(_ABBREVIATED.split())
_CLOSING: Final = "\"'”’)\\]»」』）*_"
# A reference to a source, such as "[12]", belongs to the sentence before it.
_REFERENCES: Final = r"(?:\[\d{1,3}\])*"
_REFERENCE: Final = re.compile(r"(?<=[.!?。！？,;:”’\"')])(?:\[\d{1,3}\])+(?=\s|$)")
# An end mark with closing marks after it. Whitespace must follow, except after Korean and CJK ends.
_END: Final = re.compile(
    rf"[.!?…؟।॥۔։။።។]+[{_CLOSING}]*{_REFERENCES}(?=\s)"
    rf"|(?<=[가-힣][다요죠까네오])[.!?]+{_REFERENCES}(?=[가-힣A-Z0-9\"“‘(])"
    rf"|[。！？｡]+[{_CLOSING}]*{_REFERENCES}"
    rf"|(?<=[{_HAN_AND_KANA}])[!?]+[{_CLOSING}]*(?=\S)"
)
# A particle after a closed quotation continues the sentence: "갑니다." 라고 말했다.
_GOES_ON: Final = re.compile(
    r"\s*(?:(?:이?라고|이?라는|하고|고|며|라며|는|란)(?![가-힣]{3})|と|って|という)"
)
_OPENING: Final = re.compile(r"\s+[\"'“‘«‹(\[*_`¿¡「『（]*")
_LAST_WORD: Final = re.compile(r"([\w.]+)$")
_DATE_GOES_ON: Final = re.compile(r"\s*\d{1,2}\.(?!\d)")
_IN_DATE: Final = re.compile(r"\d{4}\.\s?\d{1,2}\.\s?\d{1,2}$")
_BLANK_LINES: Final = re.compile(r"\n[ \t]*\n\s*")
_LIST_ITEM: Final = re.compile(r"\s*(?:[-*+•·▪◦‣○●□■▶※]|\(?\d{1,3}[.)]|[가-하a-z][.)])\s+\S")
_HEADING_MARK: Final = re.compile(r"\s*#{1,6}\s+\S|\s*(\*\*|__)[^*_]+\1\s*$")
_UNDERLINE: Final = re.compile(r"\s*(?:={3,}|-{3,})\s*$")
_TABLE_ROW: Final = re.compile(r".*\S\s*\|\s*\S|\s*\|")
_TABLE_RULE: Final = re.compile(r"\s*[|+]?[\s:]*-{2,}[-\s:|+]*$")
_RECORD_LINE: Final = re.compile(r"[^\s:.?!|#-][^:.?!|]{0,39}: \S")
_WORD_CHARS: Final = 40
_FURNITURE_UP_TO_CHARS: Final = 160
_HAS_WORD: Final = re.compile(r"[^\W_]")
_DIGIT: Final = re.compile(r"\d")
_ENDED: Final = re.compile(
    rf"[.!?。！？｡…:;؟।॥۔։။።។][{_CLOSING}`]*{_REFERENCES}$|"
    r"(?:니다|니까|세요|어요|아요|해요|에요|예요|나요|한다|된다|있다|없다|이다|했다|였다|았다|었다)$|"
    r"(?:です|ます|ました|でした|ません)$"
)
_WRAPPED_FROM_COLUMNS: Final = 40
_HEADING_UP_TO_COLUMNS: Final = 80
_MENU_FROM_CELLS: Final = 4
_MENU_CELL_COLUMNS: Final = 20
_WIDE: Final = re.compile(f"[가-힣{_HAN_AND_KANA}]")
# "3.2", "제3장", "Chapter 4", "(2021)": figures that a heading may have.
_HEADING_NUMBER: Final = re.compile(
    r"^\s*(?:\(?[\dIVX]{1,4}[.)]|\d{1,2}(?:\.\d{1,2})+\.?|제?\s?\d{1,3}\s?[장절조항부편관]|"
    r"第\s?\d{1,3}\s?[章節节条條部編编])\s|^\W*(?:chapter|section|part|appendix|kapitel|teil|chapitre|capítulo|глава)\s\w{1,4}\b|[(（\[]?(?:19|20)\d\d년?[)）\]]?",
    re.IGNORECASE,
)

# Furniture: what pages have around their text, in several languages.
_PAGE_NUMBER: Final = re.compile(
    r"\W*(?:page|p\.|pg\.?|seite|s\.|página|pagina|strona|стр\.?|страница|σελίδα|trang|페이지|쪽|"
    r"第|頁|页|ページ)?\s*\d{1,5}\s*(?:(?:of|von|de|di|из|/|中)\s*\d{1,5})?\s*(?:페이지|쪽|页|頁|ページ)?\W*",
    re.IGNORECASE,
)
_CONTENTS: Final = re.compile(
    r"\W*(?:(?:table of )?contents|on this page|in this article|목\s*차|차\s*례|"
    r"目\s*[次录錄]|"
    r"inhalt(?:sverzeichnis)?|sommaire|table des matières|índice|indice|sumário|содержание|"
    r"оглавление|spis treści|inhoud(?:sopgave)?|içindekiler|mục lục|المحتويات|περιεχόμενα)\W*",
    re.IGNORECASE,
)
_LEADERS: Final = re.compile(r".*\S\s*(?:(?:[.·‧]\s?){4,}|…{2,})\s*\d{1,4}\s*")
_ARROWS: Final = re.compile(r"\s[>›»→/]\s|\s?[›»→]\s?")
_LINK_TEXTS: Final = (
    "home|menu|search|log ?in|log ?out|sign ?in|sign ?up|register|subscribe|contact(?: us)?|"
    "about(?: us)?|help|faq|sitemap|site map|next(?: page)?|prev(?:ious)?(?: page)?|back|top|up|"
    "back to (?:the )?top|skip to (?:the )?(?:main )?(?:content|navigation)|skip navigation|"
    "read more|show more|load more|view all|see all|share|share this(?: page)?|"
    "print(?: this page)?|"
    "edit(?: this page)?|download|privacy(?: policy)?|terms(?: of (?:use|service))?|"
    "terms (?:&|and) conditions|cookie (?:policy|settings|preferences)|"
    "accept(?: all)?(?: cookies)?|"
    "reject(?: all)?(?: cookies)?|close|advertisement|sponsored|follow us|newsletter|"
    "홈|메뉴|전체 ?메뉴|검색|로그인|로그아웃|회원 ?가입|마이 ?페이지|고객 ?센터|사이트 ?맵|"
    "이전(?: ?글| ?페이지)?|"
    "다음(?: ?글| ?페이지)?|목록(?:으로)?|맨 ?위로|위로|더 ?보기|공유(?:하기)?|인쇄(?:하기)?|닫기|"
    "본문 ?(?:으로 )?바로 ?가기|개인정보 ?(?:처리|취급) ?방침|이용 ?약관|쿠키 설정|광고|구독|"
    "首页|首頁|主页|菜单|搜索|搜尋|登录|登入|注册|註冊|联系我们|聯絡我們|关于我们|關於我們|帮助|网站地图|"
    "上一[页頁篇]|下一[页頁篇]|返回(?:顶部|頂部|首页)?|更多|分享|打印|列印|关闭|跳至内容|隐私政策|隱私政策|"
    "ホーム|メニュー|検索|ログイン|ログアウト|会員登録|新規登録|お問い合わせ|サイトマップ|前へ|次へ|戻る|"
    "トップへ戻る|ページトップへ|もっと見る|共有|印刷|閉じる|プライバシーポリシー|利用規約|"
    "startseite|anmelden|abmelden|registrieren|impressum|datenschutz(?:erklärung)?|kontakt|"
    "über uns|suche|zurück|weiter|nach oben|mehr (?:lesen|erfahren)|teilen|drucken|"
    "accueil|connexion|s'inscrire|rechercher|mentions légales|suivant|précédent|haut de page|"
    "lire la suite|partager|imprimer|inicio|iniciar sesión|registrarse|buscar|aviso legal|"
    "siguiente|anterior|volver arriba|leer más|compartir|imprimir|início|entrar|próximo|"
    "главная|войти|выйти|регистрация|поиск|контакты|о нас|далее|назад|наверх|поделиться"
)
_LINK: Final = re.compile(rf"\W*(?:{_LINK_TEXTS})\W*", re.IGNORECASE)
_NOTICE: Final = re.compile(
    r"©|\(c\)\s*(?:19|20)\d\d|\bcopyright\s*(?:©|\(c\)|(?:19|20)\d\d)|\ball rights reserved\b|"
    r"무단\s?(?:전재|복제|배포)|모든 권리 보유|저작권자|版权所有|版權所有|无断转载|無断転載|禁無断|"
    r"alle rechte vorbehalten|tous droits réservés|todos los derechos reservados|"
    r"todos os direitos reservados|tutti i diritti riservati|все права защищены|"
    r"\b(?:we|this (?:web)?site|our (?:web)?site|our partners)\b.{0,30}\bcookies?\b|"
    r"\b(?:accept|reject|manage|allow)\b.{0,20}\bcookies\b|"
    r"\bcookies? (?:policy|settings|consent)\b|"
    r"쿠키(?:를|의)?\s?(?:사용(?:합니다|하고|에)|허용|동의)|(?:网站|網站)使用.{0,6}cookie|"
    r"(?:サイト|当社).{0,12}(?:クッキー|cookie)|"
    r"diese (?:web)?(?:seite|site) (?:verwendet|nutzt) cookies|"
    r"(?:wir|nous|el sitio|este sitio).{0,30}\bcookies\b",
    re.IGNORECASE,
)
_NOTICE_SIGNS: Final = (
    "©", "(c)", "copyright", "rights", "cookie", "무단", "권리", "저작", "쿠키", "版权", "版權",
    "转载", "転載", "クッキー", "rechte", "droits", "derechos", "direitos", "diritti", "права",
)  # fmt: skip
_ABOUT_NOTICE: Final = re.compile(
    r"copyright|rights|licen[cs]e|cookie|저작권|권리|쿠키|版权|版權|著作権|クッキー|urheber|rechte|droits|"
    r"derechos|direitos|diritti|прав|куки",
    re.IGNORECASE,
)


def split(passage: str) -> list[Sentence]:
    """All sentences in order; none is empty."""
    language = language_of(passage)
    may_hold_notices = any(sign in passage.casefold() for sign in _NOTICE_SIGNS)
    blocks = [
        lines
        for block in _BLANK_LINES.split(passage)
        if (lines := [line for line in _lines(block.split("\n")) if _HAS_WORD.search(line.text)])
    ]
    sentences: list[Sentence] = []
    for number, lines in enumerate(blocks):
        following = blocks[number + 1] if number + 1 < len(blocks) else None
        for at, line in enumerate(lines):
            last_line = following is None and at == len(lines) - 1
            part = line.part
            is_notice = may_hold_notices and _NOTICE.search(line.text) is not None
            if len(lines) == 1 and part in (PagePart.TEXT, PagePart.FURNITURE) and not is_notice:
                part = _standing_alone(line, is_first=number == 0, following=following)
            if part is not PagePart.TEXT:
                sentences.append(Sentence(text=_collapsed(line.text), part=part))
                continue
            texts = [text for piece in _prose(line.text, language) if (text := _collapsed(piece))]
            for index, text in enumerate(texts):
                if not _HAS_WORD.search(text):
                    continue
                last = last_line and index == len(texts) - 1
                is_cut = (not sentences and _begins_midway(text)) or (last and _ends_midway(text))
                is_notice = may_hold_notices and _NOTICE.search(text) is not None
                sentences.append(
                    Sentence(
                        text=text,
                        part=PagePart.NOTICE if is_notice else PagePart.TEXT,
                        is_cut=is_cut,
                        header=line.header,
                    )
                )
    return sentences


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A line of a block; several where they are one paragraph or one record."""

    text: str
    part: PagePart = PagePart.TEXT
    header: str = ""


def _collapsed(text: str) -> str:
    return " ".join(text.split())


def _columns(text: str) -> int:
    """How wide it is: a Korean, Chinese or Japanese character is as wide as two letters."""
    return len(text) + len(_WIDE.findall(text))


def _standing_alone(line: _Line, *, is_first: bool, following: Sequence[_Line] | None) -> PagePart:
    """What a line between blank lines is."""
    if line.part is PagePart.FURNITURE:
        # "Contact" above text is a heading.
        is_heading = following is not None and following[0].part is PagePart.TEXT
        return PagePart.HEADING if is_heading and _LINK.fullmatch(line.text) else PagePart.FURNITURE
    text = line.text
    if not _is_title(text):
        return PagePart.TEXT
    if following is None:
        # All that there is, or the last line: a heading whose text is in the next passage.
        is_short = _columns(text) <= _WRAPPED_FROM_COLUMNS
        return PagePart.BARE if is_short and not is_first else PagePart.TEXT
    if _DIGIT.search(_HEADING_NUMBER.sub(" ", text)):
        return PagePart.BARE
    next_text = following[0].text
    is_one_of_several = (
        len(following) == 1
        and following[0].part is PagePart.TEXT
        and _is_title(next_text)
        and _columns(next_text) <= _WRAPPED_FROM_COLUMNS
    )
    return PagePart.BARE if is_one_of_several else PagePart.HEADING


def _lines(lines: Sequence[str]) -> Iterator[_Line]:
    """The lines of a block, with wrapped lines and records put together."""
    records = sum(bool(_RECORD_LINE.match(line)) for line in lines)
    if len(lines) > 1 and records >= 0.7 * len(lines) and records >= 2:
        yield _Line(text="\n".join(lines))
        return
    at = 0
    while at < len(lines):
        end = at + 1
        if _is_row(lines[at]):
            while end < len(lines) and (_is_row(lines[end]) or _TABLE_RULE.match(lines[end])):
                end += 1
            yield from _table(lines[at:end])
        elif part := _part_of_line(lines[at]):
            yield _Line(text=lines[at], part=part)
        elif end < len(lines) and _UNDERLINE.match(lines[end]) and _HAS_WORD.search(lines[at]):
            yield _Line(text=lines[at], part=PagePart.HEADING)
            end += 1
        else:
            while end < len(lines) and _is_wrapped(lines[end - 1], lines[end]):
                end += 1
            yield _Line(text="\n".join(lines[at:end]))
        at = end


def _is_row(line: str) -> bool:
    return "|" in line and _TABLE_ROW.match(line) is not None


def _part_of_line(line: str) -> PagePart | None:
    """None where the line is text."""
    if _HEADING_MARK.match(line):
        return PagePart.HEADING
    if len(line) > _FURNITURE_UP_TO_CHARS:
        return None
    if _PAGE_NUMBER.fullmatch(line) or _CONTENTS.fullmatch(line) or _LEADERS.fullmatch(line):
        return PagePart.FURNITURE
    if _LINK.fullmatch(line):
        return PagePart.FURNITURE
    steps = _ARROWS.split(line)
    if (
        len(steps) > 2
        and not _ENDED.search(line)
        and max(map(_columns, steps)) <= 2 * _MENU_CELL_COLUMNS
    ):
        return PagePart.FURNITURE  # Home > Docs > Backups
    return None


def _table(lines: Sequence[str]) -> Iterator[_Line]:
    """Rows that stand together, with the row above them that names the columns."""
    rows = [line for line in lines if _HAS_WORD.search(line) and not _TABLE_RULE.match(line)]
    cells = [[cell.strip() for cell in row.strip().strip("|").split("|")] for row in rows]
    if len(rows) == 1:
        yield _Line(text=rows[0], part=PagePart.FURNITURE if _is_menu(cells[0]) else PagePart.TEXT)
        return
    has_rule = len(lines) > 1 and _TABLE_RULE.match(lines[1]) is not None
    is_grid = bool(cells) and len(cells[0]) > 1 and len({len(row) for row in cells}) == 1
    for at, row in enumerate(rows):
        if at == 0 and (has_rule or (is_grid and not _DIGIT.search(row))):
            yield _Line(text=row, part=PagePart.TABLE_HEADER)
        elif _is_menu(cells[at]):
            yield _Line(text=row, part=PagePart.FURNITURE)
        else:
            named = has_rule or (is_grid and not _DIGIT.search(rows[0]))
            yield _Line(text=row, header=_collapsed(rows[0]) if named else "")


def _is_menu(cells: Sequence[str]) -> bool:
    """A row of links: Home | Docs | Log in."""
    links = sum(_LINK.fullmatch(cell) is not None for cell in cells)
    return links >= max(2, len(cells) / 2)


def _is_wrapped(above: str, line: str) -> bool:
    """Whether `line` continues the paragraph that the line above belongs to."""
    if _LIST_ITEM.match(line) or _is_row(line):
        return False
    if not _HAS_WORD.search(line) or _part_of_line(line):
        return False
    return _columns(above.strip()) >= _WRAPPED_FROM_COLUMNS


def _prose(text: str, language: Language) -> Iterator[str]:
    start = 0
    for end in _END.finditer(text):
        if _is_end(text, start, end, language):
            yield text[start : end.end()]
            start = end.end()
    yield text[start:]


def _is_end(text: str, start: int, end: re.Match[str], language: Language) -> bool:
    mark, after = end[0], end.end()
    if len(mark) > 1 and mark[-1] in "\"'”’」』" and _GOES_ON.match(text, after):
        return False
    if mark[0] in "。！？｡":
        return True
    if after < len(text) and not text[after].isspace():
        return True  # a Korean ending straight before the next sentence
    opening = _OPENING.match(text, after)
    next_char = text[opening.end() : opening.end() + 1] if opening else ""
    if not next_char.isalnum() or next_char.islower():
        return False
    if mark[0] != ".":
        return True
    before = _LAST_WORD.search(text, max(start, end.start() - _WORD_CHARS), end.start())
    word = before[1] if before else ""
    if word.lower() in _ABBREVIATIONS:
        return False
    if len(word) == 1 and word.lower() != word.upper():
        return False  # an initial: "J. Smith", "z. B."
    if not word.replace(".", "").isdigit():
        return True
    if end.start() - start < _WORD_CHARS and text[start : end.start()].strip() == word:
        return False  # the number of a list item or a section: "1. Install"
    # Dates ("2024. 5. 12.") and, in some languages, ordinal numbers ("am 3. Mai").
    if _DATE_GOES_ON.match(text, after) or _IN_DATE.search(
        text, max(start, end.start() - _WORD_CHARS), end.start()
    ):
        return False
    return not (language.has_ordinal_dots and len(word) <= 2)


def _is_title(text: str) -> bool:
    if (_RECORD_LINE.match(text) and not _HEADING_NUMBER.match(text)) or (
        _LIST_ITEM.match(text) and not _HEADING_NUMBER.match(text)
    ):
        return False
    if _columns(text) > _HEADING_UP_TO_COLUMNS:
        return False
    return not _ENDED.search(text.rstrip()) and "|" not in text


def _begins_midway(text: str) -> bool:
    return text[0].islower() or text[0] in ",.;:)]}%!?、。"


def _ends_midway(text: str) -> bool:
    return _columns(text) > _WRAPPED_FROM_COLUMNS and not _ENDED.search(text) and "|" not in text


# A question -> the pattern that a sentence holding its answer is likely to show.
#
# "How many" and 몇 expect a number, "when" and 언제 a date, "who" and 누구 a name, "where" and 어디
# a place, "why" and 왜 a reason, and so in other languages. Only a preference: a sentence without
# the pattern may still be the answer, and most questions expect nothing in particular.

_NUMBER: Final = re.compile(
    r"\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|hundred|thousand|"
    r"million|billion|dozen|half|third|quarter|once|twice|first|second)\b|"
    r"(?:한|두|세|네|다섯|여섯|일곱|여덟|아홉|열|스무|서른|하루|이틀|사흘|나흘|열흘)\s?[가-힣]|"
    r"[一二三四五六七八九十百千万億亿两兩]",
    re.IGNORECASE,
)
_DATE: Final = re.compile(
    r"\b1\d{3}\b|\b20\d\d\b|\b\d{1,2}[:.]\d\d\b|\b\d{2,4}s\b|\bcentur(?:y|ies)\b|"
    r"\b(?:January|February|March|April|May|June|July|August|September|October|November|December|"
    r"Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)\b|"
    r"\d+\s?(?:년|월|일|시|분|세기|주)|오전|오후|새벽|정오|자정|매(?:일|주|달|월|년)|[월화수목금토일]요일|"
    r"[\d一二三四五六七八九十〇]\s?[年月日時点點]|世[紀纪]"
)
_NAME: Final = re.compile(
    r"(?<=[a-z,;)] )[A-Z][\w.'’-]+|^[A-Z][\w'’-]+ [A-Z]|"
    r"[가-힣]{2,4}\s?(?:씨|님|교수|박사|대표|팀장|과장|부장|사장|감독|장관|대통령|담당자|관리자|대왕)|"
    r"[가-힣]{2,4}(?:이|가|은|는)\s"
)
_TWO_NAMES: Final = re.compile(r"(?<=\w )[A-ZÀ-ÞА-ЯΑ-Ω][\w’'-]+ [A-ZÀ-ÞА-ЯΑ-Ω]|·|さん|氏")
_PLACE: Final = re.compile(
    r"\b(?:in|at|on|near|from|to|of) (?:the )?[A-Z]|"
    r"[가-힣](?:에서|에 있|층|역|시|도|군|구|동|읍|면)(?![가-힣])|메뉴|위치|저장|"
    r"在|位[于於]|[市省县縣国國州区區]|にあ"
)
_REASON: Final = re.compile(
    r"\b(?:because|due to|since|in order|so that|therefore|result|reason|caused?)\b|"
    r"때문|위해|위하여|덕분|므로|까닭|이유|因|由于|由於|為に|ため|から|"
    r"\b(?:weil|denn|wegen|damit|parce que|à cause|porque|debido|perché|poiché|omdat|deoarece|"
    r"ponieważ|protože|потому|так как|из-за|бо|çünkü|nedeniyle|vì|bởi|επειδή|διότι|λόγω)\b|"
    r"क्योंकि|कारण|لأن|بسبب|เพราะ",
    re.IGNORECASE,
)
# The later of two that fit says more: "몇 년" asks for a date, not for any number.
_ANSWER_PATTERNS: Final = tuple(
    (re.compile(question, re.IGNORECASE), answer)
    for question, answer in (
        (
            r"\bhow\s(?!(?:do|does|did|to|can|is|are|was|were|would|should)\b)\w+|몇|얼마|며칠",
            _NUMBER,
        ),
        (r"\bwhat (?:percent\w*|number|amount|age)\b", _NUMBER),
        (
            r"\b(?:wie ?viele?|wie (?:lange?|hoch|weit|gro(?:ß|ss)|alt)|combien|"
            r"cuánt[oa]s?|quant[aeio]s?|"
            r"сколько|скільки|колко|kaç|bao nhiêu|mấy|πόσ\w+|câ[tț][iăe]?|"
            r"hoeveel|ilu|ile|kolik|hány|"
            r"berapa|hur många|hvor mange|kuinka (?:monta|paljon)|كم|چند|کتنے)\b|कितन|กี่|เท่าไร|"
            r"多少|几|幾|多[大长長高远遠久]|いくつ|いくら|ど(?:の|れ)(?:くらい|ぐらい)|"
            r"何(?:人|個|冊|回|歳|匹|本|枚|キロ|メートル|パーセント)",
            _NUMBER,
        ),
        (r"\b(?:when|(?:what|which) (?:year|date|day|month|time|century|decade))\b", _DATE),
        (r"언제|몇\s?(?:년|월|일|시(?!간)|요일)", _DATE),
        (
            r"\b(?:wann|quand|cuándo|quando|когда|коли|кога|ne zaman|khi nào|năm nào|πότε|când|"
            r"wanneer|kiedy|kdy|när|hvornår|milloin|mikor|kapan|متى)\b|"
            r"何时|何時|什么时候|什麼時候|哪一?年|哪[天日]|几[月年]|幾[月年]|いつ|何[年月日]",
            _DATE,
        ),
        (r"\b(?:who|whom|whose)\b|누구|누가", _NAME),
        (
            r"\b(?:wer|wem|wen|qui|quién|quiénes|quem|кто|кого|хто|кой|kim|cine|kto|kdo|vem|hvem|kuka|"
            r"ποι[οόa]ς|ποια)\b|^(?:chi|ai|ki|wie)\b|谁|誰|だれ",
            _TWO_NAMES,
        ),
        (r"\b(?:where|(?:what|which) (?:city|country|place|location|town|state|region))\b", _PLACE),
        (r"어디|어느 (?:곳|도시|나라|지역)|哪[里裡儿兒国國个城]|何处|どこ", _PLACE),
        (r"\bwhy\b|왜|이유|까닭|为什么|為什麼|为何|なぜ|どうして", _REASON),
        (
            r"\b(?:warum|weshalb|wieso|pourquoi|por qué|por que|perché|почему|чому|защо|neden|"
            r"niçin|tại sao|vì sao|γιατί|waarom|dlaczego|proč|de ce|varför|hvorfor|miksi|miért|"
            r"mengapa|لماذا)\b|"
            r"क्यों|ทำไม",
            _REASON,
        ),
    )
)


def answer_pattern(question: str) -> re.Pattern[str] | None:
    """What to look for in a sentence; None if the question asks for nothing in particular."""
    fitting = [answer for cue, answer in _ANSWER_PATTERNS if cue.search(question)]
    return fitting[-1] if fitting else None


MOST_QUOTES: Final = 3
QUOTE_CHARS: Final = 400
ENOUGH: Final = 0.3
"""The relevance below which nothing is quoted."""

# Measured with bench/extractive.py; the rates hardly change when one of these is halved or doubled.
_FROM_NEIGHBOURS: Final = 0.3
_FROM_PASSAGE: Final = 0.3
_FROM_RETRIEVAL: Final = 0.4
_EXPECTED_ANSWER: Final = 0.15
_IS_CUT: Final = 0.15
_IS_BARE: Final = 0.4
_IS_QUESTION: Final = 0.2
_IS_SHORT: Final = 0.15
_SHORT_CHARS: Final = 15
_BACKGROUND: Final = 2.0
_COMMON_WORD: Final = 0.35
_TITLE: Final = 0.7
_SAME_BEGINNING: Final = 0.7
_SAME_SYLLABLE: Final = 0.35
_CHARACTER: Final = 0.5
_COMMON_CHARACTER: Final = 0.3
_PER_SENTENCE: Final = 0.04
_USUAL_SENTENCES: Final = 30
_PER_KEYWORD: Final = 0.05
_USUAL_KEYWORDS: Final = 5
# A further quote must score this share of the best one.
_NEXT_QUOTE: Final = 0.6
_SAME_SENTENCE: Final = 0.85

_SPACE: Final = re.compile(" ")
_NOT_WORD: Final = re.compile(r"\W+")


@dataclass(frozen=True, kw_only=True)
class Quote:
    text: str
    passage: int
    """Index into the passages."""
    header: str = ""
    """Of a row in a table: the row that names its columns."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """`quotes` are at most three, the best one first. `relevance` is that of the best one, about 0
    to 1: the share of the question in it and its surroundings, corrected for chance."""

    relevance: float
    quotes: tuple[Quote, ...]


@dataclass(frozen=True, kw_only=True)
class ExtractiveAnswer:
    answer: str
    cited: tuple[int, ...]
    """Indices of the cited passages: the first is `[1]` in the answer."""


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    sentence: Sentence
    passage: int
    terms: frozenset[str]
    matches: tuple[float, ...]  # of each keyword, from 0 to 1
    is_quotable: bool


@dataclass(frozen=True, kw_only=True)
class _RankedCandidate:
    candidate: _Candidate
    score: float
    relevance: float  # the weighted share of the question in the sentence and around it


def answer(
    question: str,
    passages: Sequence[str],
    scores: Sequence[float],
    titles: Sequence[str] | None = None,
) -> ExtractiveAnswer:
    """Quote what answers the question.

    `scores` are those of the passages, on any scale: higher is better. `titles` say what each
    passage is about, if its text does not: the name of its document, the headings above it.
    """
    chosen = quotes(question, passages, scores, titles)
    if not chosen:
        return ExtractiveAnswer(answer=language_of(question).not_found, cited=())
    cited = tuple(dict.fromkeys(quote.passage for quote in chosen))
    lines: list[str] = []
    # Rows of one table stand together below its header.
    for table in dict.fromkeys((quote.passage, quote.header or quote.text) for quote in chosen):
        rows = [quote for quote in chosen if (quote.passage, quote.header or quote.text) == table]
        if rows[0].header:
            lines.append(rows[0].header)
        lines += (f"{row.text} [{cited.index(row.passage) + 1}]" for row in rows)
    return ExtractiveAnswer(answer="\n".join(lines), cited=cited)


def quotes(
    question: str,
    passages: Sequence[str],
    scores: Sequence[float],
    titles: Sequence[str] | None = None,
) -> list[Quote]:
    """At most three quotes, the best one first."""
    ranking = rank(question, passages, scores, titles)
    return list(ranking.quotes) if ranking.relevance >= ENOUGH else []


def rank(
    question: str,
    passages: Sequence[str],
    scores: Sequence[float],
    titles: Sequence[str] | None = None,
) -> Ranking:
    """What would be quoted, and how likely it answers the question."""
    titles = [""] * len(passages) if titles is None else titles
    if not len(passages) == len(scores) == len(titles):
        raise ValueError(
            f"{len(passages)} passages with {len(scores)} scores and {len(titles)} titles"
        )
    keywords = keywords_of(question)
    question = nfkc(question)
    candidates = _candidates([nfc(passage) for passage in passages], keywords, question)
    if not keywords or not any(candidate.is_quotable for candidate in candidates):
        return Ranking(relevance=0.0, quotes=())
    weights = _weights(keywords, candidates)
    of_titles = [
        tuple(_TITLE * _match(keyword, title) for keyword in keywords)
        for title in map(terms_in, titles)
    ]
    ranked = _rank(question, candidates, weights, scores, of_titles)
    best = ranked[0]
    chosen: list[_Candidate] = []
    for other in ranked:
        if len(chosen) == MOST_QUOTES or other.score < _NEXT_QUOTE * best.score:
            break
        if not any(_is_same(other.candidate, taken) for taken in chosen):
            chosen.append(other.candidate)
    return Ranking(
        relevance=_correct_for_chance(best.relevance, keywords, candidates),
        quotes=tuple(
            Quote(
                text=_shorten(candidate.sentence.text, keywords, weights),
                passage=candidate.passage,
                header=candidate.sentence.header,
            )
            for candidate in chosen
        ),
    )


def _candidates(
    passages: Sequence[str], keywords: Sequence[Keyword], question: str
) -> list[_Candidate]:
    """The sentences of the passages in order, including those that are only context of others."""
    own_terms = terms_in(question)
    quotes_notices = _ABOUT_NOTICE.search(question) is not None
    candidates = []
    for passage, text in enumerate(passages):
        for sentence in split(text):
            terms_ = terms_in(sentence.text)
            is_quotable = (
                sentence.part is PagePart.TEXT
                or (sentence.part is PagePart.NOTICE and quotes_notices)
                # A line that has only words of the question answers nothing.
                or (sentence.part is PagePart.BARE and not terms_ <= own_terms)
            )
            candidates.append(
                _Candidate(
                    sentence=sentence,
                    passage=passage,
                    terms=terms_,
                    matches=tuple(_match(keyword, terms_) for keyword in keywords),
                    is_quotable=is_quotable,
                )
            )
    return candidates


def _match(keyword: Keyword, sentence: frozenset[str]) -> float:
    """How well the terms of a sentence match the keyword, from 0 to 1."""
    if not keyword.terms.isdisjoint(sentence):
        return 1.0
    return max((part for term, part in keyword.weak if term in sentence), default=0.0)


def _weights(keywords: Sequence[Keyword], candidates: Sequence[_Candidate]) -> list[float]:
    """The weight of each keyword, together 1: the fewer sentences have it, the more it weighs."""
    total = len(candidates)
    raw = []
    for at, keyword in enumerate(keywords):
        having = sum(candidate.matches[at] == 1 for candidate in candidates)
        rarity = math.log(1 + (total - having + 0.5) / (having + 0.5))
        raw.append(keyword.weight * (_BACKGROUND + rarity))
    whole = sum(raw)
    return [weight / whole for weight in raw]


def _rank(
    question: str,
    candidates: Sequence[_Candidate],
    weights: Sequence[float],
    scores: Sequence[float],
    titles: Sequence[tuple[float, ...]],
) -> list[_RankedCandidate]:
    pattern = answer_pattern(question)
    best_score = max(scores)
    # Similarities are between 0 and 1, scores of BM25 above 0, those of cross-encoders of any sign.
    scale = max(best_score, best_score - min(scores), 0.3)
    ranked = []
    for passage in dict.fromkeys(candidate.passage for candidate in candidates):
        own = [candidate for candidate in candidates if candidate.passage == passage]
        whole = [max(column) for column in zip(*(one.matches for one in own), strict=True)]
        base = _FROM_PASSAGE * _weighted(whole, weights)
        base -= _FROM_RETRIEVAL * (best_score - scores[passage]) / scale
        nothing = (0.0,) * len(weights)
        headings = {0: titles[passage]}  # by level, those that are open
        for at, candidate in enumerate(own):
            is_row = candidate.sentence.header != ""
            if not is_row:
                headings.pop(_HEADER_LEVEL, None)
            if candidate.sentence.part in (PagePart.HEADING, PagePart.BARE, PagePart.TABLE_HEADER):
                level = _level(candidate.sentence)
                headings = {above: one for above, one in headings.items() if above < level}
                headings[level] = candidate.matches
            if not candidate.is_quotable:
                continue
            # A row says nothing about the rows beside it.
            before = own[at - 1].matches if at and not is_row else nothing
            after = own[at + 1].matches if at + 1 < len(own) and not is_row else nothing
            around = [
                max(here, earlier, 0.7 * later, *above)
                for here, earlier, later, *above in zip(
                    candidate.matches, before, after, *headings.values(), strict=True
                )
            ]
            direct = _weighted(candidate.matches, weights)
            relevance = _weighted(around, weights)
            score = base + direct + _FROM_NEIGHBOURS * (relevance - direct)
            if pattern is not None and _shows(candidate.sentence.text, pattern, question):
                score += _EXPECTED_ANSWER
            score -= _penalty(candidate.sentence)
            ranked.append(_RankedCandidate(candidate=candidate, score=score, relevance=relevance))
    return sorted(ranked, key=lambda one: -one.score)


_HEADER_LEVEL: Final = 8


def _level(heading: Sentence) -> int:
    """1 to 6 in Markdown; 7 for a heading without marks; the lowest level for a table's header."""
    if heading.part is PagePart.TABLE_HEADER:
        return _HEADER_LEVEL
    return len(heading.text) - len(heading.text.lstrip("#")) or 7


def _correct_for_chance(
    relevance: float, keywords: Sequence[Keyword], candidates: Sequence[_Candidate]
) -> float:
    """The relevance of the best sentence, corrected for chance.

    By chance, the best of many sentences shares more with a question than the best of few, and
    half of a short question is shared more easily than half of a long one.
    """
    length = sum(keyword.weight for keyword in keywords)
    return (
        relevance
        - _PER_SENTENCE * math.log(len(candidates) / _USUAL_SENTENCES)
        + _PER_KEYWORD * math.log(length / _USUAL_KEYWORDS)
    )


def _shows(text: str, pattern: re.Pattern[str], question: str) -> bool:
    """Whether the text matches the pattern with words that are not in the question."""
    return any(match[0].strip() not in question for match in pattern.finditer(nfkc(text)))


def _weighted(matches: Sequence[float], weights: Sequence[float]) -> float:
    return sum(match * weight for match, weight in zip(matches, weights, strict=True))


def _penalty(sentence: Sentence) -> float:
    return (
        _IS_CUT * sentence.is_cut
        + _IS_BARE * (sentence.part is PagePart.BARE)
        + _IS_QUESTION * sentence.text.endswith(("?", "？"))
        + _IS_SHORT * (len(sentence.text) < _SHORT_CHARS)
    )


def _is_same(one: _Candidate, other: _Candidate) -> bool:
    """Whether two sentences are the same: overlapping chunks repeat them, whole or cut."""
    bare, other_bare = (
        _NOT_WORD.sub("", comparable(candidate.sentence.text)) for candidate in (one, other)
    )
    if bare in other_bare or other_bare in bare:
        return True
    different = one.terms ^ other.terms
    if any(char.isdigit() for term in different for char in term):
        return False  # two rows of a table, or two versions: only the figures differ
    return len(different) <= (1 - _SAME_SENTENCE) * len(one.terms | other.terms)


def _shorten(text: str, keywords: Sequence[Keyword], weights: Sequence[float]) -> str:
    """The text, or the part of at most about 400 characters that shares most with the question."""
    text = _REFERENCE.sub("", text)
    if len(text) <= QUOTE_CHARS:
        return text
    last = len(text) - QUOTE_CHARS // 2  # a part that begins later would be too short
    starts = [0, *(space.end() for space in _SPACE.finditer(text) if space.end() < last)]

    def worth(start: int) -> float:
        part = terms_in(text[start : start + QUOTE_CHARS])
        return _weighted([_match(keyword, part) for keyword in keywords], weights)

    # One window every hundred characters is enough; of equal ones the earliest is taken.
    apart = QUOTE_CHARS // 4
    tried = {start // apart: start for start in reversed(starts)}
    start = max(sorted(tried.values()), key=worth)
    part = text[start : start + QUOTE_CHARS]
    if start + QUOTE_CHARS < len(text):
        part = (part.rsplit(" ", 1)[0] if " " in part[QUOTE_CHARS // 2 :] else part) + " …"
    return ("… " if start else "") + part

"""MediaWiki's words in the languages of Wikipedia: namespaces, redirects, disambiguation templates, language codes.

From MediaWiki's message files (`languages/messages/Messages*.php`, namespace names with their aliases, and the magic
word `redirect`) and the wikis' own `MediaWiki:Disambiguationspage`. All in lower case, with spaces for underscores.
To add a language, add its words to the tables; `tests/pipelines/text/test_extract.py` shows how each is used.
"""

from __future__ import annotations


def _words(table: str) -> frozenset[str]:
    return frozenset(word for part in table.replace("\n", ",").split(",") if (word := part.strip()))


# Prefixes of links that show a picture, a film or a sound; such a link and its caption are no text.
FILE_NAMESPACES = _words("""
    afbeelding, archivi, archivie, archivo, archivu, arkivo, arquivo, attēls, beeld, belld, berkas, bestand
    bestân, bild, bilde, bildo, biliþ, billede, comhad, dataja, datei, datoteka, datotéka, dealbh, delwedd
    dosiero, dosya, duillig, fail, faili, fails, fasciculus, fayl, ficheiro, fichero, fichier, fichièr
    fichye, figura, fil, file, fitxategi, fitxer, fiura, fişier, fișier, fájl, gambar, grafika, hình
    imachen, image, imagem, imagen, imagine, imago, imatge, imaxe, imaxen, imej, immaggene, immagine
    immaxine, immàggine, imådje, irudi, ixiptli, kuva, kép, larawan, lêer, media, mynd, obrázek, obrázok
    ofbyld, paveikslėlis, picha, pilt, plaetje, plik, rasm, resim, restr, skeda, skeudenn, slika, soubor
    stampa, suret, súbor, ta'ãnga, talaksan, tasvir, tiedosto, tòng-àn, tập tin, vaizdas, wobraz, wêne
    ymele, íomhá, òbrôzk, īxiptli, şəkil, αρχείο, εικόνα, εἰκών, билэ, выява, датотека, зображення, зураг
    изображение, иллюстрация, картинка, ойуу, податотека, рәсем, слика, сурет, сүрөт, файл, фајл, һүрәт
    ӳкерчĕк, պատկեր, בילד, דאטיי, טעקע, קובץ, תמונה, انځور, تصویر, حکومت ملف, دوتنه, صورة, فائل, فایل, ملف
    وێنە, پرونده, پەڕگە, ފައިލު, चित्र, চিত্র, ফাইল, ਤਸਵੀਰ, ਫ਼ਾਈਲ, ନବାଛବି, படிமம், దస్త్రం, బొమ్మ, ಚಿತ್ರ
    ചിത്രം, പ്രമാണം, ගොනුව, රූපය, සිතියම, ภาพ, ไฟล์, ဖိုင်, სურათი, ფაილი, ስዕል, ፋይል, ファイル, 图像, 圖像
    圖片, 文件, 档案, 檔案, 画像, 그림, 파일
""")

CATEGORY_NAMESPACES = _words("""
    bólkur, catagóir, categori, categoria, categorie, category, categoría, categurìa, categurìe, catiguria
    catégorie, flokkur, jamii, kategooria, kategoreja, kategori, kategoria, kategorie, kategoriija
    kategorija, kategorio, kategory, kategorya, kategorî, kategurija, kategòrëjô, kategória, kateqori
    kateqoriya, katigoriya, kaurian, klad, klas, kumpulan, luokka, lūi-pia̍t, roinn-seòrsa, rummad
    saachjrupp, sinifi, sokajy, thể loại, turkum, ñemohenda, κατηγορία, ангилал, вахтам, категори, категория
    категориясы, категорија, категорія, катигорія, катэгорыя, санат, төркем, կատեգորիա, קאטעגאריע, קטגוריה
    تصنيف, رده, زمرہ, وېشنيزه, پۆل, ھاوپۆل, वर्ग, वर्गः, श्रेणी, বিষয়শ্রেণী, ਸ਼੍ਰੇਣੀ, ଶ୍ରେଣୀ, பகுப்பு
    వర్గం, ವರ್ಗ, വർഗ്ഗം, ප්‍රවර්ගය, หมวดหมู่, ကဏ္ဍ, კატეგორია, ምድብ, カテゴリ, 分类, 分類, 类别, 분류
""")

# Words after "#" that make a page a redirect.
REDIRECT_WORDS = _words("""
    aanstuur, adkas, ail-cyfeirio, ailgyfeirio, alidirekti, alidirektu, alih, athsheoladh, birzuzendu
    doorverwijzing, endrecera, istiqamətləndirmə, kiahou, kúfù, lencong, ohjaus, omdirigere, omdirigering
    patrz, peradresavimas, presmeruj, preusmeri, preusmjeri, przekieruj, přesměruj, redireccion, redirección
    redirecionamento, redirect, redirection, redirecționeaza, redirèccion, reendrecera, rimando, rinvia
    rinvio, suuna, tam, tilvísun, uudelleenohjaus, viderekobling, virruleedung, weiterleitung, yönlendir
    yönlendirme, átirányítás, đổi, ανακατευθυνση, айдау, виж, омыдыг, перанакіраваньне, перенапр
    перенаправление, перенаправлення, пренасочване, пренасочување, преусмери, վերահղում, הפניה, ווייטערפירן
    تحويل, تغییر مسیر, تغییرمسیر, رجوع مکرر, अनुप्रेषित, पुनर्प्रेषित, वळवा, வழிமாற்று, దారిమార్పు
    തിരിച്ചുവിടുക, යළියොමුව, වෙනතයොමු, เปลี่ยนทาง, გადამისამართება, リダイレクト, 転送, 重定向, 重新導向
    넘겨주기
""")

# Templates that mark a disambiguation page; "nl/dp" only on nlwiki, since elsewhere "dp" is another template.
DISAMBIGUATION_TEMPLATES = _words("""
    2lcdisambig, 3ccdisambig, 4ccdisambig, 5ccdisambig, aimai, anlam ayrım, anlam ayrımı, apartigilo
    argipen, arrondissements homonymes, asefham, aðgreining, aýrıq, begriepskläärenge, begriffskloorung
    begriffsklärig, begriffsklärung, bg/пояснение, bs/čvor, callsigndis, cantons homonymes, clarip
    communes françaises homonymes, dab, dab cleanup, dab page, daugiareikšmis, dbig, de/bkl, desambig
    desambigazión, desambigua, desambiguacion, desambiguació, desambiguación, desambiguaçao, desambiguação
    desambiguáncia, dezambig, dezambiguizare, disam, disamb, disambig, disambig cleanup
    disambig-chinese-char-title, disambig-cleanup, disambigua, disambiguasi, disambiguation
    disambiguation cleanup, disambigue, discretiva, dixebra, diżambig, doorverwijspagina, dubbelsinnig
    dəqiqləşdirmə, egyért, egyért-redir, et/täpsustus, fish-dab, fleiri týdningar, fleirtyding, flertydig
    fr/internationalisation, fr/paronymie, fr/patronymes, fr/patronymie, fr/prénoms, fr/sigle, fr/toponymie
    förgrening, förgreningssida, geodis, gestion dij sinònim, grensida, gwahaniaethu, hndis, hndis cleanup
    hndis-cleanup, hndisambig, homonimia, homonymes, homonymie, homonymie de clubs sportifs
    homonymie de nom romain, homónimos, hospitaldis, idirdhealú, khpi, khu-pia̍t-iah, khu-pia̍t-ia̍h
    kthjellim, letterdis, linke täpsüstüslehekülile, lt/nuorodinis, ltg/nūzeimu atdaleišona, matessi innòmmu
    mathdab, mehrdüdig begreep, milyoltaca, mk/појаснување, namnförgrening, nds_nl/dv, neibetsjuttings
    nl/dp, nl/dpintro, nl/dpnaam, nn/peikar, no/peker, nozīmju atdalīšana, numberdis, omonimeye, omonimi
    omonimia, paglilinaw, pamipalino, personnes homonymes, powdis, razdvojba, razločitev, roaddis
    robotskapad förgrening, rozcestník, rozjasnjenje zapśimjeśow, rozlišovacia stránka, saints homonymes
    schooldis, shipindexdis, starnë ùjednoznacznieniô, stationdis, sut'ichana qillqa, telplänov, tg/маъно
    titres homonymes, tladisambig, trang định hướng, trebokstavsförgrening, täpsustuslehekülg, täsmennyssivu
    ujednoznacznienie, unités homonymes, verdudeliking, villes homonymes, višeznačna odrednica, višeznačnost
    wjacezmyslnosć, äiznamoičenduz, định hướng, αποσαφήνιση, σαφήνισις, айрық, багатозначність, бзн
    бирдей аталыштар, вишезначна одредница, вишезначност, ибҳомзудоӣ, күп мәгънәләр, күп мәғәнәлелек
    лама смусть, многозначность, многозначные термины, мъногосмꙑ́слиѥ, неадназначнасць, неадназначнасьць
    неоднозначность, неоднозначність, однофамильцы, пояснителна страница, салаа утгатай
    смустень коряс явома, список однофамільців, элбэх суолталаах өйдөбүллэр, բազմանշանակ, բազմանշանակություն
    բազմիմաստ, բազմիմաստություն, երկիմաստ, באדייטן, פירושונים, ابهامزدایی, ابهام‌زدایی, ايرىق, توضيح, توضیح
    رفع ابهام, سلجھاؤ, ضد ابہام, ڕوونکردنەوە, दुजोरी निराकरण, नि:संदिग्धीकरण, बहुविकल्पी, बहुविकल्पी शब्द
    দ্ব্যর্থতা নিরসন, দ্ব্যর্থতা-নিরসন, ਗੁੰਝਲ-ਖੋਲ੍ਹ, பக்கவழி நெறிப்படுத்தல், అయోమయ నివృత్తి, పలు అర్థాలు
    ದ್ವಂದ್ವ ನಿವಾರಣೆ, നാനാര്‍ത്ഥം, നാനാർത്ഥം, වක්රෝත්තිහරණ, වක්‍රෝත්තිහරණ, แก้กำกวม, แก้ความกำกวม
    მრავალმნიშვნელოვანი, መንታ, 人名の曖昧さ回避, 人名消歧义, 人名消歧義, 地名の曖昧さ回避, 地名消歧义
    地名消歧義, 学校名の曖昧さ回避, 山の曖昧さ回避, 搞清楚, 曖昧さ回避, 消含糊, 消歧义, 消歧义页, 消歧義
    消歧義頁, 消除含糊, 消除歧义, 消除歧義, 駅名の曖昧さ回避, 동명이인, 동음이의
""")

# Codes of Wikipedias (meta.wikimedia.org/wiki/List_of_Wikipedias, and their old ones): prefixes of interlanguage links.
# Listed one by one, since "CSI:" and "Re:" begin articles' titles.
LANGUAGES = _words("""
    aa, ab, ace, ady, af, ak, als, alt, am, ami, an, ang, ann, anp, ar, arc, ary, arz, as, ast, atj, av, avk
    awa, ay, az, azb, ba, ban, bar, bat-smg, bbc, bcl, bdr, be, be-tarask, be-x-old, bew, bg, bh, bi, bjn
    blk, bm, bn, bo, bpy, br, bs, btm, bug, bxr, ca, cbk-zam, cdo, ce, ceb, ch, cho, chr, chy, ckb, co, cr
    crh, cs, csb, cu, cv, cy, da, dag, de, dga, din, diq, dsb, dtp, dty, dv, dz, ee, el, eml, en, eo, es, et
    eu, ext, fa, fat, ff, fi, fiu-vro, fj, fo, fon, fr, frp, frr, fur, fy, ga, gag, gan, gcr, gd, gl, glk
    gn, gom, gor, got, gpe, gsw, gu, guc, gur, guw, gv, ha, hak, haw, he, hi, hif, ho, hr, hsb, ht, hu, hy
    hyw, hz, ia, id, ie, ig, igl, ii, ik, ilo, inh, io, is, it, iu, ja, jam, jbo, jv, ka, kaa, kab, kbd, kbp
    kcg, kg, kge, ki, kj, kk, kl, km, kn, ko, koi, kr, krc, ks, ksh, ku, kus, kv, kw, ky, la, lad, lb, lbe
    lez, lfn, lg, li, lij, lld, lmo, ln, lo, lrc, lt, ltg, lv, lzh, mad, mai, map-bms, mdf, mg, mh, mhr, mi
    min, minnan, mk, ml, mn, mni, mnw, mo, mos, mr, mrj, ms, mt, mus, mwl, my, myv, mzn, na, nah, nan, nap
    nb, nds, nds-nl, ne, new, ng, nia, nl, nn, no, nov, nqo, nr, nrm, nso, nv, ny, oc, olo, om, or, os, pa
    pag, pam, pap, pcd, pcm, pdc, pfl, pi, pih, pl, pms, pnb, pnt, ps, pt, pwn, qu, rm, rmy, rn, ro, roa-rup
    roa-tara, rsk, ru, rue, rup, rw, sa, sah, sat, sc, scn, sco, sd, se, sg, sgs, sh, shi, shn, shy, si
    simple, sk, skr, sl, sm, smn, sn, so, sq, sr, srn, ss, st, stq, su, sv, sw, szl, szy, ta, tay, tcy, tdd
    te, tet, tg, th, ti, tig, tk, tl, tly, tn, to, tpi, tr, trv, ts, tt, tum, tw, ty, tyv, udm, ug, uk, ur
    uz, ve, vec, vep, vi, vls, vo, vro, wa, war, wo, wuu, xal, xh, xmf, yi, yo, yue, za, zea, zgh, zh
    zh-classical, zh-cn, zh-min-nan, zh-tw, zh-yue, zu
""")

# Notes in parentheses at the end of a disambiguation page's title.
DISAMBIGUATION_WORDS = _words("""
    andre betydninger, anlam ayrımı, begriffsklärung, desambiguació, desambiguación, desambiguação, dezambiguizare
    disambigua, disambiguasi, disambiguation, doorverwijspagina, egyértelműsítő lap, flertydig, flertydig side
    homonymie, olika betydelser, rozcestník, täsmennyssivu, ujednoznacznienie, định hướng, значения, значення
    פירושונים, توضيح, 曖昧さ回避, 消歧义, 消歧義, 동음이의
""")

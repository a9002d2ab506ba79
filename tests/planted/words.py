"""Word lists of our own, from which clean rows are made. English first, then Chinese."""


def _words(text: str) -> list[str]:
    return text.split()


PEOPLE = _words(
    "miller carpenter weaver gardener captain teacher baker potter doctor farmer clerk painter sailor shepherd "
    "cook driver singer printer mason plumber tailor librarian porter ranger mechanic dentist nurse guard pilot "
    "barber brewer cobbler grocer hunter keeper lawyer merchant neighbour organist poet referee scholar trader "
    "usher vet welder beekeeper clockmaker angler glazier innkeeper juggler locksmith herbalist novelist optician "
    "courier"
)
NAMES = _words(
    "Odile Brannoc Marit Tobias Yusra Halvard Inga Petra Rufus Selma Anouk Bertil Corin Dagny Edmund Freya Gustav "
    "Hedda Ivo Joren Kasper Linnea Milo Nadia Oskar Pilar Quentin Rosa Stellan Thea Ulric Vera Wilma Xenia Yorick "
    "Zora Amrit Bela Chiara Dario Emeka Farida Goran Hana Idris Jamila Kofi Leila Mateo Noor"
)
TOWNS = _words(
    "Ardley Brockham Corriston Dunmere Elverton Farrowby Glenhythe Harrowgate Inverdale Jorvale Kestrelby "
    "Lowmarsh Merrowdown Netherby Oxley Pennard Quillbrook Ravensea Saltmere Thornwick Upperstone Velden Westerby "
    "Yarrowfield"
)
ADJECTIVES = _words(
    "patient quiet broken narrow wooden early rusty gentle stubborn crooked bright hollow ancient careful dusty "
    "eager faded golden hasty icy jolly knotted lonely muddy nervous orderly pale quick rough silver tidy uneven "
    "velvet warm young zealous amber brittle calm damp elegant fragrant grey heavy idle keen loyal modest neat "
    "odd plain quaint round slender tall useful vast weary yellow awkward blunt cheerful dense enormous fierce "
    "generous honest iron jagged kind leafy mild noisy oval proud restless shallow tender upright vivid wild bold "
    "clever distant earthen frosty grateful humble inner coastal northern painted curious spare borrowed polished "
    "striped woollen copper mossy linen stormy sleepy famous clumsy sturdy thrifty rural modern"
)
NOUNS = _words(
    "ladder lantern basket kettle violin compass blanket ledger hammer window anchor bottle candle drawer engine "
    "feather garden ink kite lamp mirror needle oar pillow quilt rope saddle table umbrella vessel wagon barrel "
    "bridge chimney doorway fence gate hedge jacket letter map notebook orchard paddle rudder trunk valve wheel "
    "almanac bellow cradle diary easel flute goblet hinge jar keyhole loom mantle net oven pulley recipe signpost "
    "telescope urn vane whistle yoke apron bucket clock dial envelope fiddle glove helmet inkwell jug knot lens "
    "mill nail ornament pencil quiver ribbon scarf timber urchin vest walnut barn cellar dyke field furnace "
    "harbour kiln meadow nest pasture quarry river stable tower valley well workshop bakery canal drum filter "
    "gear hull"
)
SITES = _words(
    "market harbour library chapel station mill orchard bakery schoolhouse workshop lighthouse quarry ferry inn "
    "museum greenhouse courthouse theatre stable boathouse granary bridge square archive tannery forge dairy "
    "nursery observatory warehouse vineyard aquarium print-shop laundry post-office town-hall allotment brickyard "
    "shipyard smokehouse"
)
DEEDS = _words(
    "mended painted carried counted measured polished borrowed buried weighed folded repaired sketched traded "
    "emptied examined gathered hid insured jammed labelled lifted moved noticed opened packed raised returned "
    "rolled scrubbed sharpened shifted sold sorted stitched stored tested tied trimmed turned unlocked varnished "
    "washed wrapped abandoned balanced cleaned delivered dragged drew dropped fetched filled fixed greased "
    "guarded inspected lowered mapped named ordered photographed planted pressed recorded rescued salvaged sealed "
    "shook split stacked swapped copied tightened towed traced warmed watered"
)
DOINGS = _words(
    "painting counting sorting repairing watching measuring cleaning trading carving drawing lifting moving "
    "testing polishing labelling stacking folding guarding sketching weighing mending warming greasing sealing"
)
HAPPENINGS = _words(
    "creaked leaked froze rattled swayed collapsed arrived closed vanished flooded overflowed sank whistled "
    "smoked sparkled trembled cracked slipped shrank dried rusted opened stalled melted"
)
TIMES = _words(
    "harvest frost thaw market-day sunrise sunset regatta election auction concert holiday inspection drought "
    "rainstorm fair wedding anniversary lecture rehearsal voyage blackout census festival eclipse"
)
MONTHS = _words("January February March April May June July August September October November December")
UNITS = _words("minutes hours days weeks months seasons")
NUMBERS = _words("two three four five six seven eight nine eleven twelve fourteen fifteen twenty thirty forty")
LINKS = _words("near behind beside above below opposite beyond within inside around across outside")
REMARKS = _words("Although While Because Since Once Whenever Unless Until")
PEOPLE_ZH = _words(
    "木匠 裁缝 园丁 船长 老师 面包师 陶工 医生 农夫 会计 画家 水手 牧羊人 厨师 司机 歌手 印刷工 石匠 水管工 "
    "图书管理员 搬运工 护林员 机械师 牙医 护士 保安 飞行员 理发师 酿酒师 鞋匠 杂货商 猎人 律师 商人 邻居 诗人 "
    "裁判 学者 养蜂人 钟表匠 渔夫 玻璃匠 店主 锁匠 小说家 邮递员 棋手 摄影师 翻译 琴师 染布工 茶农 修车工 记者 "
    "泥瓦匠 铁匠"
)
NAMES_ZH = _words(
    "陈小禾 林望舒 赵一帆 周若溪 吴敬亭 郑晓岚 孙北辰 马书瑶 胡长青 郭知夏 何沐阳 高云舟 罗星野 梁雨桐 宋怀瑾 "
    "唐宛如 许听松 韩嘉树 冯念慈 曹明远 彭思齐 曾令仪 萧逸尘 田静姝 董清和 袁若水 潘景行 于飞鸿 余朝晖 杜若兰"
)
PLACES_ZH = _words(
    "老街 码头 图书馆 车站 磨坊 果园 面包房 学堂 作坊 灯塔 采石场 渡口 客栈 博物馆 温室 剧院 马厩 船坞 粮仓 石桥 "
    "广场 档案室 铁铺 奶站 苗圃 天文台 仓库 葡萄园 水族馆 洗衣店 邮局 砖窑 茶馆 菜市场 体育馆 山谷 河滩 竹林 渔村 "
    "集市"
)
ADJECTIVES_ZH = _words(
    "安静 破旧 狭窄 木制 生锈 温和 固执 弯曲 明亮 古老 细心 落满灰尘 褪色 金黄 匆忙 冰冷 快活 孤单 泥泞 紧张 整齐 "
    "苍白 粗糙 银色 平坦 暖和 年轻 易碎 潮湿 优雅 芳香 灰色 沉重 敏锐 忠诚 谦虚 简单 滚圆 修长 高大 有用 宽阔 "
    "疲惫 黄色 笨拙 茂密 巨大 慷慨 诚实 善良 吵闹 骄傲 柔软 鲜艳 大胆 聪明 遥远 著名 结实 节俭 崭新 借来 擦亮 "
    "条纹 铜制 长满青苔"
)
NOUNS_ZH = _words(
    "梯子 灯笼 篮子 水壶 小提琴 指南针 毯子 账本 锤子 窗户 铁锚 瓶子 蜡烛 抽屉 发动机 羽毛 风筝 镜子 船桨 枕头 "
    "绳索 马鞍 桌子 雨伞 马车 木桶 烟囱 篱笆 大门 外套 信件 地图 笔记本 船舵 书架 箱子 阀门 轮子 摇篮 日记 画架 "
    "长笛 高脚杯 铰链 罐子 织布机 渔网 烤炉 滑轮 菜谱 路标 望远镜 风向标 哨子 围裙 水桶 闹钟 信封 手套 头盔 "
    "墨水瓶 镜片 钉子 铅笔 丝带 围巾 木料 谷仓 地窖 堤坝 熔炉 窑炉 鸟巢 水井 齿轮 船壳 算盘 茶壶 竹椅 石磨 砚台 "
    "油纸"
)
DEEDS_ZH = _words(
    "修好 漆好 搬走 数清 量过 擦亮 埋好 称过 叠好 画下 换掉 倒空 检查完 收齐 藏好 贴上标签 举起 打开 装好 送回 "
    "卷起 洗净 磨快 卖掉 分好 缝好 存好 试过 捆紧 剪短 锁上 包好 扔下 取来 灌满 守住 放低 拍下 种下 压平 记下 "
    "救出 封好 劈开 堆好 拧紧 拖走 浇透"
)
DOINGS_ZH = _words(
    "打量 清点 整理 修补 看守 丈量 清洗 雕刻 描画 搬运 测试 擦拭 折叠 称量 寻找 研究 打听 收集 出售 挑选 抄写 晾晒"
)
TIMES_ZH = _words(
    "秋收 霜降 开春 集日 日出 黄昏 划船赛 选举 拍卖 音乐会 放假 检修 大旱 暴雨 庙会 婚礼 纪念日 讲座 排练 远航 "
    "停电 普查 灯节 日食 立冬 谷雨"
)
HAPPENINGS_ZH = _words(
    "吱呀作响 漏了水 结了冰 摇晃起来 塌了一角 忽然到了 提前关门 不见了 被水淹过 冒着烟 闪着光 裂开了 滑了下来 "
    "缩小了 晾干了 生了锈 停了下来 化开了"
)
MEASURES_ZH = _words("三件 四个 五只 六箱 七捆 八袋 九排 十筐 两套 半车 一整批 十几样 二十份 三十组")
SIDES_ZH = _words("旁边 后面 对面 里面 外面 附近 门口 尽头 角落 前头")
REMARKS_ZH = _words("虽然 自从 因为 尽管 每当 既然 眼看 就在")

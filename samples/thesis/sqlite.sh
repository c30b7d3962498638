# A database in memory: rows are inserted and indexed, then joined and looked up.
cat >work.sql <<'SQL'
PRAGMA temp_store = MEMORY;
CREATE TABLE item (id INTEGER PRIMARY KEY, owner INTEGER, price INTEGER, name TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 150000)
INSERT INTO item SELECT i, i * 7919 % 30011, i * 104729 % 10007, 'item number ' || (i * 31 % 150000) FROM n;
CREATE INDEX by_owner ON item (owner);
CREATE INDEX by_name ON item (name);
SELECT count(*), sum(a.price) FROM item a JOIN item b ON a.owner = b.owner WHERE a.price < 2000 AND b.price > a.price;
SELECT count(*) FROM item a JOIN item b ON b.name = 'item number ' || a.id WHERE a.id % 3 = 0;
UPDATE item SET price = price + 1 WHERE owner % 5 = 0;
DELETE FROM item WHERE id % 4 = 1;
SELECT owner, count(*), max(name) FROM item GROUP BY owner ORDER BY 2 DESC, 1 LIMIT 5;
SQL
nestwalk-mark 3
sqlite3 :memory: <work.sql
nestwalk-mark 4

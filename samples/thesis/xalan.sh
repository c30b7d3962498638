# XML to HTML by a style sheet: a tree of the whole document in memory.
awk 'BEGIN {
    print "<?xml version=\"1.0\"?><site>"
    for (i = 0; i < 12000; i++)
        printf "<item id=\"i%d\"><name>thing %d</name><price>%d</price><text>words <b>%d</b> and words</text></item>\n", i, i * 7919 % 12007, i * 31 % 997, i
    print "</site>"
}' >site.xml
cat >site.xsl <<'XSL'
<?xml version="1.0"?>
<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">
<xsl:key name="price" match="item" use="price"/>
<xsl:template match="/site"><html><body>
<xsl:for-each select="item"><xsl:sort select="name"/><xsl:sort select="price" data-type="number"/>
<p><xsl:value-of select="name"/>: <xsl:value-of select="count(key('price', price))"/> <xsl:apply-templates select="text"/></p>
</xsl:for-each></body></html></xsl:template>
<xsl:template match="b"><i><xsl:value-of select="."/></i></xsl:template>
</xsl:stylesheet>
XSL
nestwalk-mark 3
xalan -in site.xml -xsl site.xsl -out site.html
nestwalk-mark 4

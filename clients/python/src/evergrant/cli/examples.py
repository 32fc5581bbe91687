"""One example for the help of each command."""

import shlex

from cyclopts import App

EXAMPLES = """\
evergrant init --provider github --subject alice
evergrant connect crm alice --open --wait
evergrant token crm alice --min-ttl 300 > token
evergrant proof con_… GET https://api.example.com/me
evergrant proxy con_… GET /user/repos?per_page=5
evergrant mcp url tools alice
evergrant audit con_… -o json
evergrant audit evidence --framework soc2 > evidence.md
evergrant detections --kind new_network
evergrant questions uses con_… --since 2026-05-01T00:00:00
evergrant questions reach report --since 2026-05-01T00:00:00 --until 2026-06-01T00:00:00
evergrant questions incident --since 2026-05-03T12:00:00 --integration crm
evergrant questions subject alice -o json
evergrant questions ls
evergrant questions answer qst_…
evergrant audit key > log.pub
evergrant audit receipt main-3/17 --out receipt.json
evergrant audit export log.jsonl --histories
evergrant audit verify receipt.json --log log.pub --record main-3/17
evergrant audit checkpoint --kept log.checkpoint --log log.pub
evergrant audit witness --name security.example/w1 --log log.pub
evergrant login
evergrant logout
evergrant whoami
evergrant import grants.jsonl --dry-run
evergrant export --to export.pub --out grants.sealed
evergrant export-key export.key export.pub
evergrant plan -f configuration
evergrant apply -f configuration --prune
evergrant deliver file token github alice --mode 0640 --owner report:www-data
evergrant deliver kubernetes --namespace reports
evergrant completion bash > ~/.local/share/bash-completion/completions/evergrant
evergrant providers ls -o yaml
evergrant providers own
evergrant providers propose acme.json
evergrant providers versions acme
evergrant providers approve acme 2 --reason "new token host"
evergrant providers reject acme 2 --reason "wrong token host"
evergrant providers roll-back acme 2 --reason "refreshes fail"
evergrant providers check
evergrant providers explain slack --status 200 --body reply.json
evergrant providers try slack --no-browser
evergrant integrations ls
evergrant integrations get crm
evergrant integrations redirect-uri crm --provider github
evergrant integrations put crm --provider github --client-id Iv1.abc --client-secret-file secret.txt
evergrant integrations delete crm
evergrant integrations rotate-secret crm --client-secret-file new-secret.txt
evergrant integrations roll-secret-back crm
evergrant integrations health crm
evergrant overview
evergrant connections ls --state needs_reauth
evergrant connections get con_… --live
evergrant connections connect crm alice --open --wait
evergrant connections confirm con_… CODE alice
evergrant connections refresh con_…
evergrant connections reauthorize con_… --scope read --scope write
evergrant connections choose con_… site-1
evergrant connections revoke con_… --reason "alice left"
evergrant connections erase con_… --reason INC-9
evergrant connections bulk plan revoke --integration crm --state needs_reauth
evergrant connections bulk start refresh --integration crm --failing --reason INC-9
evergrant connections bulk ls
evergrant connections bulk show blk_…
evergrant connections bulk connections blk_… --outcome failed
evergrant connections bulk pause blk_…
evergrant connections bulk resume blk_…
evergrant subjects erase alice --reason INC-9
evergrant erasures ls --subject alice
evergrant erasures get era_…
evergrant holds ls
evergrant holds put --subject alice --reason CASE-7 --until 2027-01-31T00:00:00
evergrant holds end hld_… --reason "CASE-7 is closed"
evergrant incident plan breach --integration crm
evergrant incident start breach --integration crm --confirm crm --reason INC-9
evergrant incident ls
evergrant incident show inc_…
evergrant incident connections inc_… --outcome unknown
evergrant incident pause inc_…
evergrant incident resume inc_…
evergrant incident report inc_… --out report.jsonl
evergrant incident verify report.jsonl --key evergrant.example+1f2e3d4c+AQ…
evergrant campaigns plan crm crm-2026 --wave-size 50
evergrant campaigns start crm crm-2026 --reason OPS-9 --confirm crm --remind 259200 --end stop
evergrant campaigns ls
evergrant campaigns show inc_…
evergrant campaigns connections inc_… --outcome kept
evergrant campaigns pause inc_…
evergrant campaigns resume inc_…
evergrant campaigns undo inc_…
evergrant campaigns end inc_… --end keep
evergrant campaigns report inc_… --out report.jsonl
evergrant offboard rule
evergrant offboard rm-rule
evergrant offboard put-rule --subject-from user_name --sponsor platform-team
evergrant offboard start --subject alice --reason HR-7 --dry-run
evergrant offboard start --subject alice --reason HR-7
evergrant offboard ls
evergrant offboard show inc_…
evergrant offboard connections inc_…
evergrant offboard undo inc_…
evergrant offboard report inc_… --out report.jsonl
evergrant connections sign con_… POST https://api.example.com/posts --form status=Hello
evergrant apps ls
evergrant apps get report
evergrant apps put report --return-to http://127.0.0.1/ --lease-limit 600
evergrant apps rm report
evergrant apps permit report crm --subject alice
evergrant apps key report --days 30
evergrant apps keys ls report
evergrant apps keys create report --days 30 -o json
evergrant apps keys revoke report key_…
evergrant apps credentials ls report
evergrant apps credentials new-key report.jwk
evergrant apps credentials put report main --key report.jwk
evergrant apps credentials put-certificate report main --ca ca.pem --dns report.example.com
evergrant apps credentials pin-certificate report main report.pem
evergrant apps credentials put-svid report main spiffe://example.org/report --issuer example-org
evergrant apps credentials put-workload report ci --issuer github --claim repository_id=74
evergrant apps credentials rm report main
evergrant keys status
evergrant keys rotate tenant --purpose refresh
evergrant keys rewrap tenant
evergrant keys retire connection
evergrant keys rotations -o json
evergrant keys secrets
evergrant keys retire-secret app_key report
evergrant keys pause connection
evergrant keys resume connection
evergrant clients login staff --app agents
evergrant clients show
evergrant clients off
evergrant clients put desktop --redirect-uri http://127.0.0.1/callback
evergrant clients ls
evergrant clients disable cli_…
evergrant clients enable cli_…
evergrant clients rm cli_…
evergrant clients families --subject alice
evergrant clients end --subject alice
evergrant agents ls
evergrant agents get support
evergrant agents put support --purpose "answers support mails" --days 30
evergrant agents stop support --reason "it sends too much" --revoke-connections
evergrant delegations ls --app support
evergrant delegations get dlg_…
evergrant delegations explain dlg_… con_… read --action proxy --method GET --path /orders
evergrant delegations stop dlg_… --session --reason "the person has left"
evergrant delegations rules ls
evergrant delegations rules put web --issuer staff --audience web-app --client web-app=support
evergrant delegations rules delete web
evergrant approvals ls
evergrant approvals give apr_…
evergrant approvals ask con_… POST https://api.example.com/v1/refunds --reason "order 7" --wait
evergrant approvals calls --state waiting
evergrant approvals show cap_…
evergrant approvals approve cap_… --note "this once"
evergrant approvals deny cap_…
evergrant approvals use con_… POST https://api.example.com/v1/refunds
evergrant issuers ls
evergrant issuers get github
evergrant issuers put github github_actions https://token.actions.githubusercontent.com
evergrant issuers delete github
evergrant permits ls report
evergrant permits get report crm
evergrant permits put report crm --integration crm --action token --subject alice
evergrant permits rm report crm
evergrant access unused --since 2026-01-01T00:00:00
evergrant access explain report con_… read
evergrant access reach support
evergrant access report --csv > access.csv
evergrant access changes --since 2027-01-01T00:00:00Z
evergrant access simulate report --without crm
evergrant access-requests new crm token --reason "weekly report" --hours 8
evergrant access-requests ls --state waiting
evergrant access-requests approve req_…
evergrant access-requests deny req_…
evergrant access-requests withdraw req_…
evergrant people put company-login --admin platform-team
evergrant people show
evergrant people rm
evergrant people sessions
evergrant people end ses_…
evergrant streams ls
evergrant streams get siem
evergrant streams put siem https://siem.example.com/in --format ocsf -H "Authorization: Bearer …"
evergrant streams rotate siem
evergrant streams delete siem
evergrant webhooks ls
evergrant webhooks get hooks
evergrant webhooks put hooks https://app.example.com/events --event connection.needs_reauth
evergrant webhooks delete hooks
evergrant webhooks rotate hooks --overlap 86400
evergrant webhooks deliveries hooks --status failed
evergrant webhooks replay hooks dlv_…
evergrant webhooks replay-failed hooks
evergrant webhooks test hooks
""".splitlines()


def add_examples(app: App, noun: str | None = None) -> None:
    """Give each command its example, at the end of its help: those of one noun, or all."""
    for line in EXAMPLES:
        if noun is not None and line.split()[1] != noun:
            continue
        *_, command = app.parse_commands(command_line(line))[1]
        command.help_epilogue = f"Example: `{line}`"


def command_line(example: str) -> list[str]:
    """The arguments that the shell hands to the command."""
    return shlex.split(example.partition(" > ")[0])[1:]

-- What no change of a row may do, whatever the code believes.
CREATE TABLE witness (row_id text NOT NULL, wrong text NOT NULL, at timestamptz DEFAULT clock_timestamp());

CREATE TABLE witness_change (
    row_id text NOT NULL, change text NOT NULL, at timestamptz DEFAULT clock_timestamp()
);

-- When an attempt's row was written: the decision that it may be sent was made before.
CREATE TABLE witness_attempt (attempt_id text PRIMARY KEY, at timestamptz DEFAULT clock_timestamp());

CREATE FUNCTION witness_attempt() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO witness_attempt VALUES (NEW.id);
    RETURN NEW;
END $$;

CREATE FUNCTION witness_connection() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.revision <> OLD.revision + 1 THEN
        INSERT INTO witness VALUES (OLD.id, 'revision ' || OLD.revision || ' was replaced by ' || NEW.revision);
    END IF;
    IF NEW.generation NOT IN (OLD.generation, OLD.generation + 1) THEN
        INSERT INTO witness VALUES (OLD.id, 'generation ' || OLD.generation || ' became ' || NEW.generation);
    END IF;
    IF NEW.state <> OLD.state OR NEW.generation <> OLD.generation THEN
        INSERT INTO witness_change VALUES (
            OLD.id, OLD.state || ' at ' || OLD.generation || ' became ' || NEW.state || ' at ' || NEW.generation
        );
    END IF;
    IF OLD.state IN ('revoking', 'revoked') AND NEW.state NOT IN ('revoking', 'revoked') THEN
        INSERT INTO witness VALUES (OLD.id, OLD.state || ' became ' || NEW.state);
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION witness_grant() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.revision <> OLD.revision + 1 THEN
        INSERT INTO witness VALUES
            (OLD.connection_id, 'grant revision ' || OLD.revision || ' was replaced by ' || NEW.revision);
    END IF;
    IF NEW.generation < OLD.generation THEN
        INSERT INTO witness VALUES
            (OLD.connection_id, 'grant ' || OLD.generation || ' was replaced by ' || NEW.generation);
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER witness_connection AFTER UPDATE ON connection
    FOR EACH ROW EXECUTE FUNCTION witness_connection();
CREATE TRIGGER witness_attempt AFTER INSERT ON attempt
    FOR EACH ROW EXECUTE FUNCTION witness_attempt();
CREATE TRIGGER witness_grant AFTER UPDATE ON connection_grant
    FOR EACH ROW EXECUTE FUNCTION witness_grant();
